"""A path that cannot be written is one message in every command, before any work."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raymi import bench, compare, evaluate, export, report, select, standalone, train, tune
from raymi.commands.cli import run_command
from raymi.errors import StorageError
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.files import file_lock

Main = Callable[[list[str]], int]
TINY = ["data.limit=64", "workers=1", "tracking.enabled=false"]
WORDS: dict[str, tuple[Main, list[str], str]] = {
    "train": (train.main, TINY, "out"),
    "train with a name": (train.main, [*TINY, "name=mine"], "out"),
    "standalone": (standalone.main, [*TINY, "name=mine"], "out"),
    "compare": (compare.main, ["arms=at", "seeds=0", "data.limit=64"], "out"),
    "tune": (tune.main, ["space=smoke", *TINY], "out"),
    "evaluate": (evaluate.main, ["model=none"], "results"),
    "report": (report.main, ["none"], "out"),
    "export": (export.main, ["model=none"], "folder"),
    "bench": (bench.main, ["parts=profile"], "json"),
    "select": (select.main, [], "json"),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("place", ["file/x", "loop/x", "/proc/x", "/dev/null/x", "y" * 255 + "z/x"])
@pytest.mark.parametrize("command", WORDS)
def test_path_that_cannot_be_written_is_one_message(
    command: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, words, key = WORDS[command]
    assert main([*words, f"{key}={place}"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") <= 6


def test_outcome_store_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(StorageError, match="cannot write /proc/x"):
        OutcomeStore(Path("/proc/x"), {"model": "a"})


def test_lock_that_cannot_be_made_is_an_error(home: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*file/\.lock"):
        with file_lock(home / "file" / ".lock", "busy"):
            pass


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "cannot read or write /a/b (Permission denied): change its permissions"),
        (errno.EROFS, "(Read-only file system): it is on a read-only file system"),
        (errno.ENOTDIR, "(Not a directory): a file is where a folder should be"),
        (errno.EDQUOT, "cannot write /a/b (Disk quota exceeded): free space there"),
        (errno.ENAMETOOLONG, "(File name too long): choose a shorter name"),
    ],
)
def test_file_error_is_one_message(
    number: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(words: list[str]) -> int:
        raise OSError(number, os.strerror(number), "/a/b")

    assert run_command(body, []) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/a"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        KeyError("a"),
    ],
)
def test_defects_of_raymi_keep_their_traceback(error: Exception) -> None:
    def body(words: list[str]) -> int:
        raise error

    with pytest.raises(type(error)):
        run_command(body, [])
