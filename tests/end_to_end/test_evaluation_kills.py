"""Interrupted and killed evaluations: the same command returns the same numbers."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import raymi_command
from ray_head import Head
from raymi_command import SLOW_MODEL, finish, processes_below, wait_for, write_slow_model
from tiny_runs import tiny_config

from raymi import evaluate
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.runs.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.ray]

WORDS = (
    "model=a", "eps=0.1", "attacks=pgd-8,pgd-4", "samples=72", "evaluation.block=12", "checks=0",
    "tracking.enabled=false",
)  # fmt: skip
"""Six blocks of three steps, of 108 forward passes: three workers halt before their end."""

Home = tuple[Path, Path, list[dict]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A folder with the finished run "a" of a slow model, the file that releases the model, and the
    outcomes of one process."""
    folder = tmp_path_factory.mktemp("home")
    release = write_slow_model(folder, halt_after=32)  # halts until the test releases it
    release.touch()
    run = RunFolder(folder / "runs" / "a")
    run.path.mkdir(parents=True)
    model = {"model.name": SLOW_MODEL.partition("=")[2], "model.width": None, "model.depth": None}
    config = tiny_config({**model, "attack.eps": 0.05, "optim.epochs": 12, "mi.weight": 0.0})
    run.write_config(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        assert train(config, LocalContext("cpu"), run).finished
        assert evaluate.main([*WORDS, "results=expected", "workers=1"]) == 0
    report = json.loads(next((folder / "expected").glob("*/report.json")).read_text())
    clean, pgd, _ = report["results"]
    assert 0 < pgd["right"] < clean["right"], "the attack is neither useless nor perfect"
    release.unlink()
    return folder, release, outcomes(folder / "expected")


@pytest.fixture
def slow(home: Home) -> None:
    home[1].unlink(missing_ok=True)


def start(home: Path, results: Path, *words: str, **env: str) -> subprocess.Popen:
    words = (*WORDS, f"results={results}", *words)
    return raymi_command.start(home, *words, module="raymi.evaluate", **env)


def outcomes(results: Path) -> list[dict]:
    """Returns all outcomes without their duration."""
    (table,) = results.glob("*/outcomes.parquet")
    found = pq.read_table(table).drop_columns(["seconds"]).to_pylist()
    assert {row["attack"] for row in found} == {"clean", "pgd-8", "pgd-4"}
    return found


def recorded(results: Path) -> dict[Path, int]:
    """Returns the modification time of each outcome."""
    return {path: path.stat().st_mtime_ns for path in results.rglob("*-*.parquet")}


def wait_for_outcomes(results: Path, num: int, process: subprocess.Popen) -> None:
    wait_for(lambda: len(recorded(results)) >= num, process)


def wait_for_workers(ray: subprocess.Popen, process: subprocess.Popen) -> list[psutil.Process]:
    """Waits for both workers of a command, whose Ray is the processes below `ray`."""
    wait_for(lambda: len(processes_below(ray, "AttackWorker")) == 2, process)
    return processes_below(ray, "AttackWorker")


def end_by_signal(process: subprocess.Popen, signum: signal.Signals, results: Path) -> None:
    process.send_signal(signum)
    output = finish(process, 128 + signum)
    assert f"stopped by {signum.name}; recorded outcomes are in {results}" in output
    assert "to continue: python -m raymi.evaluate model=a" in output


def test_an_evaluation_survives_a_killed_worker_and_an_interrupt(
    joined_ray: Head,
    home: Home,
    slow: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, release, expected = home
    process = start(folder, tmp_path, **joined_ray.env)
    victim, _ = wait_for_workers(joined_ray.process, process)
    wait_for_outcomes(tmp_path, 2, process)
    victim.kill()
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.chdir(folder)
    assert evaluate.main([*WORDS, f"results={tmp_path}", "workers=1"]) == 2
    assert "is running in another process" in capsys.readouterr().err
    wait_for_workers(joined_ray.process, process)
    end_by_signal(process, signal.SIGINT, tmp_path)
    saved = recorded(tmp_path)
    assert 2 <= len(saved) < 18

    release.touch()
    output = finish(start(folder, tmp_path, **joined_ray.env))
    assert "from disk" in output
    assert "on 2 workers" in output, "as many as the cluster has room for"
    now = recorded(tmp_path)
    assert {path: now.get(path) for path in saved} == saved, "recorded steps do not run again"
    assert outcomes(tmp_path) == expected


@pytest.mark.exhaustive
def test_a_killed_command_leaves_no_workers_and_continues(
    home: Home, slow: None, tmp_path: Path
) -> None:
    folder, release, expected = home
    process = start(folder, tmp_path, "workers=2")
    wait_for_outcomes(tmp_path, 3, process)
    workers = wait_for_workers(process, process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    process = start(folder, tmp_path, "workers=2")
    wait_for_outcomes(tmp_path, len(recorded(tmp_path)) + 2, process)
    end_by_signal(process, signal.SIGTERM, tmp_path)
    release.touch()
    finish(start(folder, tmp_path, "workers=2"))
    assert outcomes(tmp_path) == expected


@pytest.mark.exhaustive
def test_workers_killed_one_after_the_other_are_replaced(
    home: Home, slow: None, tmp_path: Path
) -> None:
    folder, release, expected = home
    process = start(folder, tmp_path, "workers=2")
    for num in (2, 6):
        wait_for_outcomes(tmp_path, num, process)
        wait_for_workers(process, process)[0].kill()
    wait_for_outcomes(tmp_path, 9, process)
    release.touch()
    assert "worker lost (" in finish(process)
    assert outcomes(tmp_path) == expected
