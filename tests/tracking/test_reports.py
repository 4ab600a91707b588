"""Reports of a run that is in a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import Outage, client, in_folder

from raymi import report
from raymi.commands.find_model import find_model_source
from raymi.config import Config
from raymi.evaluation.report import Report
from raymi.evaluation.summary import Robustness
from raymi.reporting.folder import PAGE
from raymi.runs.run_folder import RunFolder
from raymi.tracking.evaluations import LoggedModelRef, log_evaluation
from raymi.tracking.reports import find_numbers, log_report

pytest.importorskip("mlflow")

pytestmark = pytest.mark.slow

WORDS = ["mine", "samples=20", "steps=1", "eps=0.1"]


@pytest.fixture
def home(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a store and the finished run `mine`."""
    in_folder(finished, monkeypatch)
    return finished


def kept(home: Path) -> dict[str, Any]:
    return json.loads(RunFolder(home / "runs" / "mine").tracking.read_text())


def artifacts(home: Path, name: str = "mine") -> set[str]:
    found = client().list_artifacts(kept(home)["run_id"], f"report/{name}")
    return {Path(one.path).name for one in found}


def test_the_report_is_an_artifact_of_its_run(home, capsys):
    assert report.main(WORDS) == 0
    folder = home / "reports" / "mine"
    assert artifacts(home) == {path.name for path in folder.iterdir()}
    path = client().download_artifacts(kept(home)["run_id"], f"report/mine/{PAGE}", str(home))
    assert Path(path).read_bytes() == (folder / PAGE).read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"report  {folder / PAGE}"
    assert lines[-1].startswith("MLflow  report/mine of mine  (mlflow ui ")


def test_a_repeated_report_replaces_the_earlier_one(home):
    assert report.main(WORDS) == 0
    assert "accuracy-eps.png" in artifacts(home)
    assert report.main(["mine", "samples=0"]) == 0
    assert artifacts(home) == {path.name for path in (home / "reports" / "mine").iterdir()}
    assert "accuracy-eps.png" not in artifacts(home)


def test_a_report_of_an_unfinished_run_is_logged(home, capsys):
    folder = RunFolder(home / "runs" / "mine")
    before = {path: path.read_bytes() for path in (folder.journal, *folder.path.glob("*.saf*"))}
    events = [json.loads(line) for line in folder.journal.read_text().splitlines()]
    begun = [event for event in events if event["kind"] in ("start", "epoch")]
    try:
        for path in before:
            path.unlink()
        folder.journal.write_text("".join(f"{json.dumps(event)}\n" for event in begun))
        assert report.main(["mine", "out=begun"]) == 0
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert "mine: not finished" in capsys.readouterr().out
    assert PAGE in artifacts(home, "begun")


def test_an_unreachable_store_prints_only_a_line(home, monkeypatch, capsys):
    outage = Outage(monkeypatch, "get_run", "get_logged_model")
    assert report.main(["mine", "samples=0", "out=away"]) == 0
    out = capsys.readouterr().out
    assert (home / "away" / PAGE).is_file()
    assert "accuracies in MLflow" in out
    assert "cannot log the report of mine to MLflow at " in out
    assert ": ConnectionError: " in out
    assert "to try again: python -m raymi.report mine samples=0 out=away" in out
    assert len([line for line in out.splitlines() if "MLflow" in line]) == 2
    outage.over = True
    assert artifacts(home, "away") == set()
    assert report.main(["mine", "samples=0", "out=away"]) == 0
    assert PAGE in artifacts(home, "away")


def test_without_tracking_mlflow_is_not_used(home, monkeypatch, capsys):
    outage = Outage(monkeypatch, "get_run", "get_logged_model", "log_artifact")
    assert report.main(["mine", "samples=0", "out=alone", "tracking.enabled=false"]) == 0
    assert outage.failures == 0
    assert "MLflow" not in capsys.readouterr().out
    assert (home / "alone" / PAGE).is_file()


def test_a_deleted_run_is_skipped(home, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert not log_report(kept(home)["uri"], "0" * 32, "mine", [tmp_path / "a.txt"])
    assert find_numbers(kept(home)["uri"], "m-" + "0" * 32) == []


def test_a_deleted_store_is_not_created_again(home, tmp_path, monkeypatch, capsys):
    tracking = RunFolder(home / "runs" / "mine").tracking
    before = tracking.read_text()
    gone = tmp_path / "gone.db"
    try:
        tracking.write_text(json.dumps({**json.loads(before), "uri": f"sqlite:///{gone}"}))
        assert report.main(["mine", "samples=0", "out=gone"]) == 0
    finally:
        tracking.write_text(before)
    assert not gone.exists()
    assert f"there is no MLflow store {gone}" in capsys.readouterr().out


def test_accuracies_from_mlflow_are_in_the_table(home):
    found = find_model_source("mine", Config())
    protocol = {
        "model": found.source.digest,
        "images": "d" * 64,
        "threat": {"norm": "linf", "eps": 0.2},
    }
    results = tuple(Robustness(name, right, 50, ()) for name, right in (("clean", 40), ("ddn", 7)))
    told = Report("mine-best", "elsewhere", 50, protocol, {}, home / "none", results, (), {})
    place = LoggedModelRef(found.uri or "", found.run_id, found.model_id)
    log_evaluation(told, place, command="again", experiment="raymi", home=home, files=[])
    assert report.main(["mine", "samples=0"]) == 0
    tables = json.loads((home / "reports" / "mine" / "report.json").read_text())["tables"]
    (table,) = [one for one in tables if one["data"] == "elsewhere"]
    (row,) = table["rows"]
    assert row["accuracies"]["ddn"]["accuracy"] == pytest.approx(7 / 50)
    (of_training,) = [one for one in tables if one["of_training"]]
    assert set(of_training["rows"][0]["accuracies"]) == {"clean", "pgd-2-of-training"}, (
        "what MLflow has of the training is no other question"
    )
