"""`python -m raymi.standalone`: signals and the time limit end it with a checkpoint."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder
from raymi.standalone import main

WAIT = 300.0  # seconds
TINY = [
    "name=mine", "data.limit=100", "model.width=0.25", "mi.weight=0", "attack.steps=1",
    "evaluation.steps=1", "validation.steps=1", "probe.steps=0", "scaling.workers=1",
]  # fmt: skip


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*TINY, f"out={tmp_path}"]


def test_time_limit_exits_with_75_and_the_same_command_continues(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "epochs=2", "limit.hours=1e-9"]) == 75
    assert "the same command continues" in capsys.readouterr().err
    checkpoint = load_checkpoint(RunFolder(tmp_path / "mine").checkpoints)
    assert checkpoint is not None
    assert checkpoint["position"]["global_step"] == 0
    assert main([*words, "epochs=2"]) == 0
    assert main([*words, "epochs=3"]) == 2
    assert "started with other settings (optim.epochs=2, now 3)" in capsys.readouterr().err


def test_losses_that_are_not_finite_are_one_message(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "lr=1e30", "epochs=1", "optim.schedule=constant"]) == 1
    assert capsys.readouterr().err.startswith("error: expected finite losses, got loss")


def test_full_disk_is_one_message_and_the_same_command_continues(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "epochs=1", "limit.hours=1e-9"]) == 75
    (before,) = (tmp_path / "mine" / "checkpoints").glob("step-*.pt")
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before.stat().st_size // 2, limits[1]))
    try:
        assert main([*words, "epochs=1"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write the checkpoint of step 2 to ")
    assert "(File too large). Earlier checkpoints are untouched, the newest intact one is" in error
    assert error.count("\n") == 1
    assert before.is_file()
    assert main([*words, "epochs=1"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum", [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGTERM]
)
def test_signal_leaves_a_checkpoint(words: list[str], tmp_path: Path, signum: int) -> None:
    command = [sys.executable, "-m", "raymi.standalone", *words, "epochs=100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = RunFolder(tmp_path / "mine")
    try:
        deadline = time.monotonic() + WAIT
        while not list(folder.checkpoints.glob("*.pt")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signum)
        assert process.wait(WAIT) == 128 + signum
    finally:
        process.kill()
    assert load_checkpoint(folder.checkpoints) is not None
