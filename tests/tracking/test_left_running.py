"""Stale runs that MLflow shows as RUNNING, and runs that a signal interrupts."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import WAIT, client, runs, wait_until
from raymi_command import environment
from tiny_runs import tiny_config

from raymi.config import Config
from raymi.runs.journal import Journal
from raymi.runs.run_folder import RunFolder
from raymi.tracking import store, tracked_run
from raymi.tracking.stale_runs import LOCATION, close_stale_runs
from raymi.tracking.tracked_run import TrackedRun
from raymi.tracking.tracker import Tracker

pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("own_store")

HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1] + "/.lock"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def config() -> Config:
    return tiny_config({"tracking.enabled": True})


def begin(config: Config, name: str) -> RunFolder:
    """Starts a run in MLflow as its driver does, without ending it."""
    folder = RunFolder(Path.cwd() / "runs" / name)
    folder.write_config(config)
    TrackedRun(config, folder, {"id": name, "command": "train"}, Path.cwd()).deliver(None)
    return folder


def hold(folder: RunFolder) -> subprocess.Popen[str]:
    """Starts a process that holds the run, as its driver does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def statuses() -> dict[str, str]:
    return {run.info.run_name: run.info.status for run in runs()}


def close() -> list[str]:
    return close_stale_runs(client(), runs()[0].info.experiment_id)


def test_a_run_whose_process_was_killed_is_closed_by_the_next_run(config: Config) -> None:
    folder = begin(config, "killed")
    process = hold(folder)
    try:
        assert close() == []
        assert statuses() == {"killed": "RUNNING"}, "its process lives"
    finally:
        kill(process)
    begin(config, "next")
    assert statuses() == {"killed": "KILLED", "next": "RUNNING"}


def test_a_closed_run_ends_when_its_folder_was_last_written(config: Config) -> None:
    folder = begin(config, "killed")
    kill(hold(folder))
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute("UPDATE runs SET start_time = start_time - 100000")
    last = time.time() - 50
    for path in folder.path.iterdir():
        os.utime(path, (last - 10, last - 10))
    os.utime(folder.tracking, (last, last))
    (run_id,) = close()
    assert client().get_run(run_id).info.end_time == pytest.approx(1000 * last, abs=2)


@pytest.mark.parametrize("place", ["elsewhere:", None])
def test_runs_of_other_machines_and_programs_stay_running(
    config: Config, place: str | None
) -> None:
    folder = begin(config, "other")
    kill(hold(folder))
    (run,) = runs()
    if place is None:
        client().delete_tag(run.info.run_id, LOCATION)
    else:
        client().set_tag(run.info.run_id, LOCATION, f"{place}{folder.path}")
    assert close() == []
    assert statuses() == {"other": "RUNNING"}


def test_a_run_without_folder_or_lock_stays_running(config: Config) -> None:
    first, second = begin(config, "first"), begin(config, "second")
    os.rename(second.path, second.path.with_name("away"))
    assert not (first.path / ".lock").exists()
    assert close() == []
    assert statuses() == {"first": "RUNNING", "second": "RUNNING"}


def test_a_trial_lives_as_long_as_its_sweep(config: Config) -> None:
    trial = RunFolder(Path.cwd() / "sweeps" / "mine" / "trials" / "0000")
    trial.write_config(config)
    sweep = RunFolder(trial.path.parents[1])
    (sweep.path / "sweep.json").write_text("{}")
    TrackedRun(config, trial, {"id": "0", "command": "tune"}, Path.cwd(), name="0").deliver(None)
    process = hold(sweep)
    try:
        assert close() == []
    finally:
        kill(process)
    assert len(close()) == 1
    assert statuses() == {"0": "KILLED"}


def test_a_resumed_run_is_running(config: Config) -> None:
    folder = begin(config, "mine")
    kill(hold(folder))
    assert len(close()) == 1
    TrackedRun(config, folder, {"id": "mine", "command": "train"}, Path.cwd()).deliver(None)
    assert statuses() == {"mine": "RUNNING"}


def follow(config: Config, name: str) -> Tracker:
    folder = RunFolder(Path.cwd() / "runs" / name)
    folder.write_config(config)
    followed = Tracker(config, folder, {"id": name, "command": "train"}, Path.cwd())
    followed.start()
    return followed


def test_an_interrupted_run_is_marked_before_its_models_are_logged(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading, released = threading.Event(), threading.Event()

    def slow(*_: Any) -> str:
        uploading.set()
        assert released.wait(WAIT)
        raise ConnectionError

    monkeypatch.setattr(tracked_run, "log_model", slow)
    followed = follow(config, "mine")
    journal = Journal(followed.tracked.folder.journal)
    at = {"phase": "classifier", "epoch": 1, "step": 0, "global_step": 1}
    journal.write("start", **at, workers=1, device="cpu", torch="", version="", parameters={},
                  data={"name": "digits", "digests": {"test": "a" * 64}})  # fmt: skip
    attack = {"steps": 2, "norm": "linf", "eps": 0.1, "alpha": 0.1}
    journal.write("evaluation", **at, which="best", of_epoch=1, attack=attack, clean=1.0,
                  robust=0.5, num=10, chosen=True)  # fmt: skip
    journal.write("finished", **at)
    journal.close()
    closing = threading.Thread(target=followed.close, args=("FINISHED", WAIT))
    closing.start()
    assert uploading.wait(WAIT)
    assert statuses() == {"mine": "RUNNING"}
    assert followed.interrupt().wait(WAIT)
    assert statuses() == {"mine": "KILLED"}, "during the upload"
    followed.break_off()
    released.set()
    closing.join(WAIT)
    assert statuses() == {"mine": "KILLED"}


def test_a_run_interrupted_before_it_is_created_is_never_running(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, real = threading.Event(), store.connect

    def late(uri: str) -> Any:
        assert allowed.wait(WAIT)
        return real(uri)

    monkeypatch.setattr(store, "connect", late)
    followed = follow(config, "mine")
    assert followed.interrupt().wait(WAIT)
    allowed.set()
    monkeypatch.setattr(store, "connect", real)
    wait_until(lambda: statuses() == {"mine": "KILLED"})
    assert followed.close("KILLED", WAIT)


def test_an_interrupted_run_that_completes_is_finished(config: Config) -> None:
    followed = follow(config, "mine")
    wait_until(lambda: statuses() == {"mine": "RUNNING"})
    assert followed.interrupt().wait(WAIT)
    wait_until(lambda: statuses() == {"mine": "KILLED"})
    assert followed.close("FINISHED", WAIT), followed.problem
    assert statuses() == {"mine": "FINISHED"}


def test_a_signal_handler_marks_an_interruption(config: Config) -> None:
    followed = follow(config, "mine")
    wait_until(lambda: statuses() == {"mine": "RUNNING"})
    before = signal.signal(signal.SIGTERM, lambda *_: followed.interrupt())
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: statuses() == {"mine": "KILLED"})
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_run_folder_does_not_store_its_machine(config: Config) -> None:
    folder = begin(config, "mine")
    (run,) = runs()
    assert run.data.tags[LOCATION].endswith(f":{folder.path}")
    assert LOCATION not in json.loads(folder.tracking.read_text())
