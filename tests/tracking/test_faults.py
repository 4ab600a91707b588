"""Faults of a store are one line with a remedy that works."""

from __future__ import annotations

import errno
import importlib.util
import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import mlflow
import pytest
from click.testing import CliRunner
from full_disk import files_of_at_most
from mlflow_server import Server
from mlflow_store import in_folder

from raymi import select
from raymi.errors import StorageError, UserError
from raymi.files import file_lock
from raymi.tracking import database, store
from raymi.tracking.database import sqlite_uri
from raymi.tracking.faults import store_errors_as_user_errors


@pytest.fixture(autouse=True)
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and short times of MLflow's client."""
    in_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)


@pytest.fixture
def file(tmp_path: Path, empty_store: Path) -> Path:
    """A store of the current folder."""
    return Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))


def use(uri: str) -> None:
    """Writes to a store as raymi's commands do."""
    client = store.connect(uri)
    run = client.create_run(store.experiment_id(client, "raymi", Path.cwd()))
    client.log_text(run.info.run_id, "text", "file.txt")


def refusal(uri: str) -> str:
    """Returns the one line that a fault of a store becomes."""
    with pytest.raises(UserError) as refused, store_errors_as_user_errors(uri):
        use(uri)
    text = str(refused.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert text.startswith(f"MLflow at {store.without_password(uri)} fails: ")
    return text


def migrated(file: Path, back: int) -> None:
    """Creates a database with the schema of an older MLflow."""
    from alembic import command
    from alembic.config import Config

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    revisions = list(database._migrations().walk_revisions())
    config = Config(str(migrations / "alembic.ini"))
    config.set_main_option("script_location", str(migrations))
    config.set_main_option("sqlalchemy.url", sqlite_uri(file).replace("%", "%%"))
    with closing(sqlite3.connect(file)) as made:
        made.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    first = revisions[-1]
    assert first.down_revision is None
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    engine = create_engine(sqlite_uri(file))
    Base.metadata.create_all(engine)
    engine.dispose()
    command.upgrade(config, revisions[back].revision)


def test_an_older_schema_is_upgraded_by_the_printed_command(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a b%20c" / "mlflow.db"
    file.parent.mkdir()
    migrated(file, back=3)
    with closing(sqlite3.connect(file)) as old, old:
        old.execute("INSERT INTO experiments (name, lifecycle_stage) VALUES ('mine', 'active')")
    uri = sqlite_uri(file)
    before = file.read_bytes()
    said = refusal(uri)
    assert "is older than the installed MLflow" in said
    assert file.read_bytes() == before, "MLflow would upgrade it without asking"
    words = shlex.split(said[said.index("mlflow db upgrade") :])
    assert words == ["mlflow", "db", "upgrade", uri]
    from mlflow.db import commands

    done = CliRunner().invoke(commands, words[2:])
    assert done.exit_code == 0, done.output
    use(uri)
    assert "mine" in [one.name for one in store.connect(uri).search_experiments()]


def test_a_newer_schema_requires_a_newer_mlflow(file: Path) -> None:
    with closing(sqlite3.connect(file)) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = 'ffff00000000'")
    said = refusal(sqlite_uri(file))
    assert "ffff00000000" in said
    assert said.endswith(f"is newer than the installed MLflow {mlflow.__version__}: "
                         "pip install --upgrade mlflow")  # fmt: skip


def test_a_schema_error_of_a_server_has_the_same_remedies() -> None:
    from mlflow.exceptions import MlflowException

    known = [one.revision for one in database._migrations().walk_revisions()]
    text = "Detected out-of-date database schema (found version {}, but expected {})"
    uri = "postgresql://me:pass@host/db"
    for revision, remedy in ((known[1], "mlflow db upgrade URI"), ("ffff00000000", "--upgrade")):
        with pytest.raises(UserError, match=remedy) as refused, store_errors_as_user_errors(uri):
            raise MlflowException(text.format(revision, known[0]))
        assert "pass@" not in str(refused.value)


def test_a_printed_command_takes_the_password_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = "postgresql://me:pass@host/db"
    assert store.shell_word(uri) == "URI"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.shell_word(uri) == '"$MLFLOW_TRACKING_URI"'
    assert store.shell_word("sqlite:////a b/m.db") == "'sqlite:////a b/m.db'"


def test_a_locked_database_prints_how_to_find_its_owner(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert f"another process holds it: end that (fuser -v {file}" in refusal(sqlite_uri(file))
        other.execute("ROLLBACK")
    use(sqlite_uri(file))


def test_the_remedy_for_a_file_that_is_no_database_is_to_move_it(file: Path) -> None:
    file.write_text("a note of mine\n" * 100)
    assert f"move {file} away and put a copy of it in its place" in refusal(sqlite_uri(file))
    assert file.read_text().startswith("a note")
    file.rename(file.with_name("note.txt"))
    use(sqlite_uri(file))


def test_the_remedy_for_a_damaged_database_is_a_copy(file: Path, empty_store: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100:4096] = os.urandom(3996)
    file.write_bytes(content)
    assert "put a copy of it in its place" in refusal(sqlite_uri(file))
    shutil.copy(empty_store, file)
    use(sqlite_uri(file))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    uri = sqlite_uri(tmp_path / "data" / "mlflow.db")
    assert f"{tmp_path}/data" in refusal(uri)
    assert "a file is where a folder should be, move it away" in refusal(uri)
    (tmp_path / "data").unlink()
    use(uri)


def test_an_unwritable_artifact_folder_is_named(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("mine")
    said = refusal(sqlite_uri(file))
    assert f"{tmp_path}/mlruns" in said
    assert "a file is where a folder should be, move it away" in said
    (tmp_path / "mlruns").unlink()
    use(sqlite_uri(file))


@pytest.fixture
def protected(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Function that creates a read-only folder and returns it."""
    folder = tmp_path / "protected"
    folder.mkdir()
    if os.geteuid() != 0:
        yield lambda: (folder.chmod(0o555), folder)[1]
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root may write everywhere, and cannot mount a file system here")

    def protect() -> Path:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        return folder

    yield protect
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_database_in_a_read_only_folder_is_named_with_it(
    protected: Callable[[], Path], empty_store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "protected" / "mlflow.db"
    shutil.copy(empty_store, file)
    folder = protected()
    said = refusal(sqlite_uri(file))
    assert f"make {file} and its folder {folder} writable" in said or "folder writable" in said


def test_a_read_only_folder_is_named(protected: Callable[[], Path]) -> None:
    folder = protected()
    assert f"{folder}/.mlflow.db.making" in refusal(sqlite_uri(folder / "mlflow.db"))


def test_a_read_only_lock_is_named(protected: Callable[[], Path]) -> None:
    lock = protected() / ".lock"
    with (
        pytest.raises((UserError, StorageError), match=f"{lock}") as refused,
        file_lock(lock, "held"),
    ):
        pass
    assert "read-only" in str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_lock_of_another_user_is_named_with_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch(mode=0o600)
    opened = [path for path in lock.parents if not path.stat().st_mode & 0o001]
    for path in opened:
        path.chmod(0o711)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError) as refused, file_lock(lock, "held"):
            pass
    finally:
        os.seteuid(0)
        for path in opened:
            path.chmod(0o700)
    said = str(refused.value)
    assert said.startswith(f"cannot lock {lock} (Permission denied): it belongs to the user root")


def test_a_full_disk_while_the_database_is_created_leaves_none(tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / "mlflow.db")
    with files_of_at_most(100_000):
        assert f"free space on the disk of {tmp_path}/mlflow.db" in refusal(uri)
    assert not list(tmp_path.iterdir())
    use(uri)


def test_a_full_disk_under_a_database_asks_for_space(file: Path) -> None:
    with files_of_at_most(file.stat().st_size // 2):
        assert f"free space on the disk of {file}" in refusal(sqlite_uri(file))
    use(sqlite_uri(file))


def test_a_full_disk_under_artifacts_asks_for_space(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="free space there"),
        store_errors_as_user_errors("http://host:5000"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [
        ("postgresql", "psycopg", "psycopg[binary]"),
        ("mysql", "MySQLdb", "mysqlclient"),
        ("mysql+pymysql", "pymysql", "pymysql"),
    ],
)
def test_a_missing_driver_is_named_as_its_package(scheme: str, module: str, package: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = refusal(f"{scheme}://me:pass@127.0.0.1:{server.getsockname()[1]}/db")
    assert f"pip install {package}" in said.replace("'", "")
    assert "pass" not in said.partition(" fails: ")[2]


def test_a_refused_connection_says_to_start_the_server() -> None:
    assert refusal("http://127.0.0.1:9").endswith(
        "start the server, or set MLFLOW_TRACKING_URI to another store"
    )


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql+pymysql", "mssql"])
def test_a_database_server_that_is_away_is_reported_within_seconds(scheme: str) -> None:
    began = time.monotonic()
    for host, remedy in (("127.0.0.1:9", "start the server"), ("no.invalid", "name of the host")):
        said = refusal(f"{scheme}://me:pass@{host}/db")
        assert remedy in said
        assert "pass" not in said
    assert time.monotonic() < began + 20  # MLflow alone: 100


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_unknown_host_says_to_correct_its_name(scheme: str) -> None:
    assert "correct the name of the host" in refusal(f"{scheme}://no-such-host.invalid:5000/x")


def test_an_unknown_scheme_suggests_another_store() -> None:
    assert "set MLFLOW_TRACKING_URI to another store" in refusal("nonsense://x")


class _Answer(BaseHTTPRequestHandler):
    """Server of another program, or a proxy."""

    status: ClassVar[int]
    text: ClassVar[bytes]

    def _say(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text)

    do_GET = do_POST = do_PUT = do_PATCH = _say

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@contextmanager
def answers(status: int, text: str) -> Iterator[str]:
    handler = type("Handler", (_Answer,), {"status": status, "text": text.encode()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "remedy"),
    [
        (401, "You are not authenticated.", "set MLFLOW_TRACKING_USERNAME and"),
        (403, "Permission denied", "for permission"),
        (404, "<html>Not Found</html>", "no MLflow server is below this address"),
        (200, "<html>Welcome</html>", "no MLflow server is below this address"),
        (500, "Internal Server Error", "look at the log of the server"),
        (502, "Bad Gateway", "look at the log of the server"),
    ],
)
def test_an_unexpected_answer_has_a_remedy(status: int, text: str, remedy: str) -> None:
    with answers(status, text) as uri:
        assert remedy in refusal(uri)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_refused_host_name_prints_the_server_option(
    tracking_server: Server,
) -> None:
    host = f"[::ffff:127.0.0.1]:{tracking_server.port}"  # the loopback interface by another name
    assert f"--allowed-hosts {host}" in refusal(f"http://{host}")


@pytest.mark.slow
def test_a_wrong_path_on_a_server_says_to_correct_it(tracking_server: Server) -> None:
    assert "correct its host, port and path" in refusal(f"{tracking_server.uri}/nowhere")


def test_a_fault_ends_a_command_with_one_line_and_exit_code_2(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("a note of mine\n" * 100)
    assert select.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: MLflow at {sqlite_uri(file)} fails: ")
    assert "move " in line
