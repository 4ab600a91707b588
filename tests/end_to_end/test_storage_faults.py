"""Storage that fails in the middle of a run: one message, no second attempt, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from raymi_command import events, ray_workers, run, start, succeed, wait_for
from undisturbed import assert_same_weights, undisturbed

from raymi.engine.run_folder import RunFolder

pytestmark = pytest.mark.slow
WORDS = (
    "data.limit=300", "optim.epochs=25", "attack.steps=2", "evaluation.steps=4", "mi.weight=0",
    "probe.steps=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run whose storage never failed."""
    return undisturbed(tmp_path_factory.mktemp("whole"), *WORDS)


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
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    assert out.count("the run failed: ") == 1, out + err
    assert out.count("cannot write ") >= 1
    assert f"({reason})" in out
    assert remedy in out
    assert "to continue: python -m raymi.train resume=" in out
    assert "Traceback" not in out + err, out + err
    assert len(events(folder, "start")) <= starts, "it is not tried again"
    return out


def test_a_full_disk_and_a_folder_that_vanishes_end_the_run_and_resume_ends_as_if_nothing_was(
    tmp_path: Path, whole: RunFolder
) -> None:
    process = start(tmp_path, *WORDS, "name=full", "tracking.enabled=false")
    folder = tmp_path / "runs" / "full"
    wait_for(lambda: len(events(folder, "epoch")) >= 2, process)
    workers = ray_workers(process)
    assert len(workers) == 2
    for worker in workers:  # their files can grow no more: real writes fail with EFBIG
        worker.rlimit(resource.RLIMIT_FSIZE, (100, 100))
    out = expect_one_clear_message(
        process, folder, reason="File too large", remedy="Free space there, then continue the run"
    )
    assert "Earlier checkpoints are untouched, the newest intact one is of step " in out

    before = len(events(folder, "epoch"))
    process = start(tmp_path, "resume=full")
    wait_for(lambda: len(events(folder, "epoch")) >= before + 2, process)
    away = tmp_path / "away"
    os.rename(folder, away)
    expect_one_clear_message(
        process,
        away,
        reason="No such file or directory",
        remedy="Bring its storage back",
        starts=2,
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(away, folder)
    succeed(tmp_path, "resume=full")
    assert_same_weights(whole, RunFolder(folder), "last")


def test_so_it_is_with_a_file_system_that_is_full_for_everybody(
    disk: Path, whole: RunFolder
) -> None:
    """For Ray's controller and for MLflow's store as well."""
    process = start(disk, *WORDS, "name=full")
    folder = disk / "runs" / "full"
    wait_for(lambda: len(events(folder, "epoch")) >= 2, process)
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    expect_one_clear_message(
        process, folder, reason="No space left on device", remedy="Free space there"
    )
    again = run(disk, "resume=full")
    assert again.returncode == 1, again.stdout + again.stderr
    assert "Traceback" not in again.stdout + again.stderr
    ballast.unlink()
    succeed(disk, "resume=full")
    assert_same_weights(whole, RunFolder(folder), "last")
