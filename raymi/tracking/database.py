"""Crash-safe creation of MLflow's SQLite databases.

MLflow creates its tables in many steps, and refuses a database whose creation was interrupted. So a
new database gets its name when it is complete, and an incomplete one without data is replaced.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from raymi.errors import StorageError, UserError
from raymi.files import file_lock, sync_folder

QUIET_SECONDS = 3.0
"""Seconds without a change after which an incomplete database counts as abandoned."""

_WAIT_SECONDS = 120.0  # for another process that creates the same database
_BUSY_SECONDS = 20.0  # for a lock on the database, as in MLflow
_INITIAL = {"experiments", "runs", "tags", "metrics", "params"}  # MLflow creates these first
_KEPT_IN_PATHS = "".join(chr(code) for code in range(32, 127) if chr(code) not in "%?#")


class SchemaError(Exception):
    """Error of a database with data under another schema than the installed MLflow's.

    Args:
        revision: of its schema; None: it has none.
    """

    def __init__(self, revision: str | None) -> None:
        super().__init__(f"found schema {revision}, expected that of the installed MLflow")
        self.revision = revision


class _Content(NamedTuple):
    """Content of a database.

    Attributes:
        tables: their names.
        revision: of the schema; None: not set.
        has_rows: whether a table other than alembic's has a row.
    """

    tables: set[str]
    revision: str | None
    has_rows: bool


def sqlite_uri(path: Path) -> str:
    """Returns the address of a SQLite file."""
    # SQLAlchemy decodes %XX, and takes ? and # for the end of a path.
    return f"sqlite:///{quote(str(path), safe=_KEPT_IN_PATHS)}"


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of a SQLite address; None for one in memory, and for every other address."""
    name = unquote(urlsplit(uri).path[1:])
    return Path(name) if uri.startswith("sqlite:") and name not in ("", ":memory:") else None


def complete_database(uri: str) -> None:
    """Creates the database of a SQLite address if it is missing, or incomplete and empty.

    Does nothing for other addresses.

    Raises:
        SchemaError: where it holds data under another schema.
        UserError: where another process takes too long to create it.
        OSError: where it cannot be written.
        sqlite3.Error: where it cannot be read.
    """
    file = sqlite_file(uri)
    if file is None or _is_complete(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = file.with_name(f".{file.name}.making")
        folder.mkdir(exist_ok=True)
        refusal = f"another process has been creating {file} for minutes: wait for it or stop it"
        try:
            with file_lock(folder / "lock", refusal, _WAIT_SECONDS):
                try:
                    _await_quiet(file)
                    if not _is_complete(file):  # by another process meanwhile
                        _remove(file)
                        _create(file, folder)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        except (StorageError, UserError):
            if folder.is_dir():
                raise
            continue  # another process removed the folder before this one held the lock
        return


def is_known(revision: str) -> bool:
    """Returns whether the installed MLflow knows a revision of the schema; others are newer."""
    from alembic.util.exc import CommandError

    try:
        return _migrations().get_revision(revision) is not None
    except CommandError:
        return False


def _is_complete(file: Path) -> bool:
    """Returns whether a database is complete; False: missing, or incomplete and empty.

    Raises:
        SchemaError: where it holds data under another schema.
    """
    content = _read(file)
    if content is None or not content.tables:
        return False
    if content.revision == _migrations().get_current_head():
        return True
    if not content.has_rows and content.tables & _INITIAL:
        return False
    raise SchemaError(content.revision)


def _read(file: Path) -> _Content | None:
    """Returns the content of a database; None where the file is missing or empty."""
    if not file.is_file() or file.stat().st_size == 0:
        return None
    # Not read-only: SQLite first rolls back the journal of a killed writer.
    address = f"file:{quote(str(file.absolute()))}?mode=rw"
    with closing(
        sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    ) as database:
        database.execute("BEGIN")  # one state for all queries
        found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = {name for (name,) in found if not name.startswith("sqlite_")}
        revision = None
        if "alembic_version" in tables:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
            revision = row[0] if row else None
        has_rows = any(
            database.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() is not None
            for name in tables - {"alembic_version"}
        )
    return _Content(tables, revision, has_rows)


def _await_quiet(file: Path) -> None:
    """Waits until an incomplete database has not changed for `QUIET_SECONDS`.

    An MLflow server may be creating it.
    """
    stamp, since = _stamp(file), time.monotonic()
    while not _is_complete(file) and stamp is not None and time.monotonic() < since + QUIET_SECONDS:
        time.sleep(0.1)
        if (new := _stamp(file)) != stamp:
            stamp, since = new, time.monotonic()


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _create(file: Path, folder: Path) -> None:
    """Creates a database in a temporary folder, and gives it its name when it is complete."""
    import mlflow

    # A unique name: MLflow keeps connections to the file of a failed attempt.
    created, complete = folder / f"{uuid4().hex}.db", folder / "complete.db"
    _remove(complete)  # of a process that was killed
    mlflow.MlflowClient(sqlite_uri(created.absolute())).search_experiments(max_results=1)
    # A copy, as MLflow keeps the first one open.
    with closing(sqlite3.connect(created)) as source, closing(sqlite3.connect(complete)) as copy:
        source.backup(copy)
    with complete.open("rb+") as written:
        os.fsync(written)
    try:
        os.link(complete, file)
    except FileExistsError:
        return  # created by a process without the lock, such as an MLflow server
    except OSError:  # a file system without hard links
        complete.replace(file)
    sync_folder(file.parent)


def _remove(file: Path) -> None:
    """Removes a database; its journals first, which SQLite would apply to the next one."""
    for suffix in ("-journal", "-wal", "-shm", ""):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


@cache
def _migrations() -> Any:
    """Returns the revisions of the schema that the installed MLflow knows."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
