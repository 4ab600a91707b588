"""Storage that fails during a run under Ray: one message, no second attempt, nothing lost.

tests/engine/test_storage.py states the same of the engine alone.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray_head import Head
from raymi_command import (
    SLOW_MODEL,
    events,
    finish,
    processes_below,
    start,
    succeed,
    wait_for,
    write_slow_model,
)
from undisturbed import assert_same_weights, undisturbed_slow_model

from raymi.runs.run_folder import RunFolder

pytestmark = [pytest.mark.exhaustive, pytest.mark.ray]

WORDS = (
    "data.limit=300", "optim.epochs=4", "attack.steps=2", "validation.steps=2",
    "evaluation.steps=2", "mi.weight=0", SLOW_MODEL,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run on storage that never fails."""
    return undisturbed_slow_model(tmp_path_factory.mktemp("whole"), *WORDS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def expect_one_clear_message(
    process: subprocess.Popen, folder: Path, *, reason: str, remedy: str, starts: int = 1
) -> str:
    output = finish(process, 1)
    assert output.count("the run failed: ") == 1, output
    assert output.count("cannot write ") >= 1
    assert f"({reason})" in output
    assert remedy in output
    assert "to continue: python -m raymi.train resume=" in output
    assert len(events(folder, "start")) <= starts, "without another attempt"
    return output


def test_full_disk_ends_the_run_and_resume_ends_with_identical_weights(
    joined_ray: Head, tmp_path: Path, whole: RunFolder
) -> None:
    release, folder = write_slow_model(tmp_path), tmp_path / "runs" / "full"
    process = start(tmp_path, *WORDS, "name=full", "tracking.enabled=false", **joined_ray.env)
    wait_for(lambda: len(events(folder, "epoch")) >= 1, process)
    workers = processes_below(joined_ray.process, "RayTrainWorker")
    assert len(workers) == 2
    for worker in workers:  # their files can grow no more: real writes fail with EFBIG
        worker.rlimit(resource.RLIMIT_FSIZE, (100, 100))
    output = expect_one_clear_message(
        process, folder, reason="File too large", remedy="Free space there, then continue the run"
    )
    assert "Earlier checkpoints are untouched, the newest intact one is of step " in output
    release.touch()
    succeed(tmp_path, "resume=full", **joined_ray.env)
    assert_same_weights(whole, RunFolder(folder), "last")


def test_a_removed_run_folder_ends_the_run_and_resume_ends_with_identical_weights(
    tmp_path: Path, whole: RunFolder
) -> None:
    release, folder = write_slow_model(tmp_path), tmp_path / "runs" / "gone"
    process = start(tmp_path, *WORDS, "name=gone", "tracking.enabled=false")
    wait_for(lambda: len(events(folder, "epoch")) >= 1, process)
    away = tmp_path / "away"
    os.rename(folder, away)
    expect_one_clear_message(
        process, away, reason="No such file or directory", remedy="Restore its storage"
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(away, folder)
    release.touch()
    succeed(tmp_path, "resume=gone")
    assert_same_weights(whole, RunFolder(folder), "last")


def fill(ballast: Path) -> None:
    """Adds zeros to a file until its disk is full."""
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 512):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_full_file_system_under_ray_and_mlflow_ends_the_run_with_one_message(
    disk: Path, whole: RunFolder
) -> None:
    release, folder = write_slow_model(disk), disk / "runs" / "full"
    process = start(disk, *WORDS, "name=full")
    wait_for(lambda: len(events(folder, "epoch")) >= 1, process)
    fill(disk / "ballast")
    expect_one_clear_message(
        process, folder, reason="No space left on device", remedy="Free space there"
    )
    fill(disk / "ballast")  # also what the end of the run has freed
    finish(start(disk, "resume=full"), 1)
    (disk / "ballast").unlink()
    release.touch()
    succeed(disk, "resume=full")
    assert_same_weights(whole, RunFolder(folder), "last")
