"""Later upload of runs that were trained without MLflow."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from mlflow_store import WAIT, runs, wait_until

from raymi import evaluate, standalone, train
from raymi.runs.run_folder import RunFolder
from raymi.tracking import tracked_run
from raymi.tracking.mlflow_run import RUN_ID

pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("own_store")

TINY = [
    "name=mine", "data.limit=100", "model.width=0.25", "mi.weight=0", "attack.steps=1",
    "evaluation.steps=1", "validation.steps=1", "probe.steps=0", "scaling.workers=1", "epochs=1",
]  # fmt: skip


@pytest.fixture
def finished() -> RunFolder:
    """A finished run with only its results on disk."""
    folder = RunFolder(Path.cwd() / "runs" / "mine")
    tiny_runs.tiny_run(0, 1, folder.path, {"tracking.enabled": True}, [])
    folder.write_config(tiny_runs.tiny_config({"tracking.enabled": True}))
    return folder


def test_a_standalone_run_is_uploaded_with_its_recipe_and_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert standalone.main(["recipe=quickstart-at", *TINY]) == 0
    assert runs() == []
    assert train.main(["resume=mine"]) == 0
    said = capsys.readouterr().out
    assert "models:/raymi-digits/1" in said
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["raymi.recipe"] == "quickstart-at"
    command = shlex.join(["recipe=quickstart-at", *TINY])
    assert run.data.tags["mlflow.source.name"] == f"python -m raymi.standalone {command}"


def test_a_run_without_run_json_gets_one(finished: RunFolder) -> None:
    assert not finished.about.exists()
    for _ in range(2):
        assert train.main(["resume=mine"]) == 0
    (run,) = runs()
    assert run.data.tags[RUN_ID] == json.loads(finished.about.read_text())["id"]
    assert run.data.tags["mlflow.source.name"] == "python -m raymi.train resume=mine"


def test_a_damaged_run_json_can_be_removed(
    finished: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    finished.about.write_text("{")
    assert train.main(["resume=mine"]) == 2
    error = capsys.readouterr().err
    assert f"{finished.about} is damaged" in error
    assert "remove it" in error
    finished.about.unlink()
    assert train.main(["resume=mine"]) == 0
    assert len(runs()) == 1


@pytest.mark.parametrize("enabled", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_an_evaluation_of_an_untracked_run_prints_the_upload_command(
    finished: RunFolder, capsys: pytest.CaptureFixture[str], enabled: bool
) -> None:
    finished.write_config(tiny_runs.tiny_config({"tracking.enabled": enabled}))
    words = ["model=mine", "attacks=pgd-2", "checks=0", "workers=1", "tracking.enabled=true"]
    assert evaluate.main(words) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "not in MLflow" in one]
    assert [run.info.run_name for run in runs()] == ["evaluation of mine-best"]
    command = line.partition("give python -m raymi.train ")[2].partition(",")[0]
    assert train.main(shlex.split(command)) == 0
    capsys.readouterr()
    assert evaluate.main(words) == 0
    assert "not in MLflow" not in capsys.readouterr().out
    (run,) = [one for one in runs() if one.info.run_name == "mine"]
    assert [name for name in run.data.metrics if name.startswith("eval/")]


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]
)
def test_a_signal_during_the_upload_marks_the_run_killed_and_prints_the_command(
    finished: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: int,
) -> None:
    released, real = threading.Event(), tracked_run.log_model

    def stopped(*arguments: Any) -> str:
        os.kill(os.getpid(), signum)
        assert released.wait(WAIT)
        return real(*arguments)

    monkeypatch.setattr(tracked_run, "log_model", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        assert train.main(["resume=mine"]) == 128 + signum
    finally:
        signal.signal(signal.SIGINT, before)
    assert [run.info.status for run in runs()] == ["KILLED"]
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing is lost, deliver it with: python -m raymi.train resume=mine" in said
    released.set()
    monkeypatch.setattr(tracked_run, "log_model", real)
    uploads = [one for one in threading.enumerate() if one.name == "mlflow-run"]
    wait_until(lambda: not any(one.is_alive() for one in uploads))
    assert train.main(["resume=mine"]) == 0
    assert [run.info.status for run in runs()] == ["FINISHED"]
