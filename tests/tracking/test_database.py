"""Crash-safe creation of MLflow's SQLite file."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from mlflow_store import WAIT
from raymi_command import environment

from raymi.tracking import database, store
from raymi.tracking.database import SchemaError, complete_database, sqlite_uri

pytest.importorskip("mlflow")

MAKE = "import sys; from raymi.tracking import store; store.connect(sys.argv[1])"
MAKE_BY_MLFLOW = """
import sys, mlflow
mlflow.MlflowClient(sys.argv[1]).search_experiments()
"""
FIRST_TABLES = "CREATE TABLE experiments (id INTEGER); CREATE TABLE datasets (id INTEGER);"


def start(program: str, file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, sqlite_uri(file)],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )


def kill_once(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Kills a process when a condition holds, unless it has ended."""
    deadline = time.monotonic() + WAIT
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def experiments(file: Path) -> list[str]:
    return [one.name for one in store.connect(sqlite_uri(file)).search_experiments()]


def size_of_all(folder: Path) -> int:
    """Returns bytes of the files in a folder, also of temporary ones."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def test_concurrent_creation_gives_one_complete_database(
    tmp_path: Path,
) -> None:
    file = tmp_path / "new folder" / "mlflow.db"
    made: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: made.append(experiments(file)), daemon=True)
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert made == [["Default"]] * 2
    assert [path.name for path in file.parent.iterdir()] == ["mlflow.db"]


def test_a_killed_creation_leaves_no_database(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    process = start(MAKE, file)
    kill_once(process, lambda: size_of_all(tmp_path) > 50_000)
    assert process.returncode == -signal.SIGKILL, "it was too late"
    assert not file.exists()
    assert experiments(file) == ["Default"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "the rest is cleared away"


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_bytes", [1, 8_000, 100_000, 200_000, 400_000, 600_000, 900_000])
def test_a_creation_killed_at_any_point_is_repeated(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "mlflow.db"
    kill_once(start(MAKE, file), lambda: size_of_all(tmp_path) >= num_bytes)
    assert experiments(file) == ["Default"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_bytes", [1, 20_000, 100_000, 200_000, 300_000, 400_000])
def test_an_incomplete_database_of_a_killed_mlflow_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    file = tmp_path / "mlflow.db"
    monkeypatch.setattr(database, "QUIET_SECONDS", 0.5)
    kill_once(
        start(MAKE_BY_MLFLOW, file), lambda: file.exists() and size_of_all(tmp_path) >= num_bytes
    )
    assert experiments(file) == ["Default"]


def test_an_incomplete_empty_database_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    monkeypatch.setattr(database, "QUIET_SECONDS", 0.2)
    with closing(sqlite3.connect(file)) as half:
        half.executescript(FIRST_TABLES)
    assert experiments(file) == ["Default"]


@pytest.mark.exhaustive
def test_an_empty_file_becomes_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "QUIET_SECONDS", 0.2)
    (tmp_path / "mlflow.db").touch()
    assert experiments(tmp_path / "mlflow.db") == ["Default"]


def test_a_database_that_another_program_completes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path
) -> None:
    file = tmp_path / "mlflow.db"
    monkeypatch.setattr(database, "QUIET_SECONDS", 5.0)
    with closing(sqlite3.connect(file)) as half:
        half.executescript(FIRST_TABLES)
    inode = file.stat().st_ino
    waiting = threading.Thread(target=complete_database, args=(sqlite_uri(file),))
    waiting.start()
    with closing(sqlite3.connect(empty_store)) as whole, closing(sqlite3.connect(file)) as half:
        whole.backup(half)
    waiting.join(WAIT)
    assert not waiting.is_alive()
    assert file.stat().st_ino == inode, "it is not replaced"
    assert experiments(file) == ["Default"]


@pytest.mark.exhaustive
def test_a_leftover_journal_is_not_applied_to_a_new_database(
    tmp_path: Path, empty_store: Path
) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_store, file)
    with closing(sqlite3.connect(file, isolation_level=None)) as writing:
        writing.execute("PRAGMA cache_size = 1")
        writing.execute("BEGIN IMMEDIATE")
        writing.execute("CREATE TABLE more AS SELECT hex(randomblob(200000)) AS x")
        journal = file.with_name("mlflow.db-journal")
        left = journal.read_bytes()
        writing.execute("ROLLBACK")
    assert left, "SQLite keeps pages there that it has changed"
    file.unlink()
    journal.write_bytes(left)
    assert experiments(file) == ["Default"]
    with closing(sqlite3.connect(file)) as made:
        assert made.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_database_with_data_is_never_replaced(tmp_path: Path, empty_store: Path) -> None:
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_store, file)
    with closing(sqlite3.connect(file)) as halfway, halfway:
        halfway.execute("DELETE FROM alembic_version")
    before = file.read_bytes()
    with pytest.raises(SchemaError):
        complete_database(sqlite_uri(file))
    assert file.read_bytes() == before


def test_a_database_of_another_program_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
    before = file.read_bytes()
    with pytest.raises(SchemaError):
        complete_database(sqlite_uri(file))
    assert file.read_bytes() == before


@pytest.mark.parametrize("uri", ["http://host:5000", "sqlite:///:memory:", "postgresql://h/d"])
def test_other_addresses_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    complete_database(uri)
    assert not list(tmp_path.iterdir())
