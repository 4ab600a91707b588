"""Files are whole or not there, and what killed writers have left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raymi.data.cache import cached_array
from raymi.files import atomic_file, file_lock, remove_half_written, write_atomically
from raymi.runs.run_folder import RunFolder

WRITES = """
import sys
import time
from pathlib import Path
from raymi.files import atomic_file

with atomic_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(1000)
"""


def begin_to_write(path: Path) -> subprocess.Popen[str]:
    """Starts a process that is in the middle of writing a file."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def half_written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*.tmp"))


def test_files_of_killed_writers_alone_are_removed(tmp_path: Path) -> None:
    writer = begin_to_write(tmp_path / "checkpoints.json")
    name = f".checkpoints.json.{writer.pid}.tmp"
    remove_half_written(tmp_path)
    assert half_written(tmp_path) == [name]
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert half_written(tmp_path) == [name]
    remove_half_written(tmp_path)
    assert half_written(tmp_path) == []


def leave_half_written(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.4711.tmp").write_bytes(b"half")


@pytest.mark.parametrize("name", ["best.safetensors", "checkpoints/step-1.pt", "a/b/report.json"])
def test_the_next_start_of_a_run_removes_them_in_all_folders(tmp_path: Path, name: str) -> None:
    leave_half_written(tmp_path / name)
    with RunFolder(tmp_path).lock():
        assert half_written(tmp_path) == []


def test_a_folder_with_a_lock_is_skipped(tmp_path: Path) -> None:
    trial = tmp_path / "trials" / "0000"
    leave_half_written(trial / "best.safetensors")
    (trial / ".lock").touch()
    with file_lock(tmp_path / ".lock", "in use"):
        assert half_written(tmp_path) == [".best.safetensors.4711.tmp"]
    with RunFolder(trial).lock():
        assert half_written(tmp_path) == []


def test_writing_a_file_removes_temporary_files_of_its_name(tmp_path: Path) -> None:
    leave_half_written(tmp_path / "a[1].json")
    leave_half_written(tmp_path / "b.json")
    write_atomically(tmp_path / "a[1].json", b"{}")
    assert (tmp_path / "a[1].json").read_bytes() == b"{}"
    assert half_written(tmp_path) == [".b.json.4711.tmp"]


def test_the_cache_of_arrays_removes_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    monkeypatch.setenv("RAYMI_CACHE", str(tmp_path))
    leave_half_written(tmp_path / "decoded" / "key.npy")
    np.testing.assert_array_equal(cached_array("key", lambda: np.arange(3)), [0, 1, 2])
    assert half_written(tmp_path) == []


def test_concurrent_writers_of_a_file_all_succeed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raymi.files import write_atomically\n"
        "for number in range(300): write_atomically(Path(sys.argv[1]), b'x' * 999)"
    )
    file = tmp_path / "file"
    command = [sys.executable, "-c", code, str(file)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for writer in writers:
        _, errors = writer.communicate(timeout=300)
        assert writer.returncode == 0, errors.decode()
    assert file.read_bytes() == b"x" * 999
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"earlier")
    with pytest.raises(TypeError), atomic_file(tmp_path / "a") as file:
        file.writelines([b"half", "no bytes"])
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"earlier"
