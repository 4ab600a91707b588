"""Real trials of tiny sweeps in a real MLflow store."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
from mlflow_store import WAIT, Outage, client, history, runs, wait_until
from raymi_command import events
from tiny_sweeps import CPU, begin, trained

from raymi import select
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.tracking import store, sweep_tracker
from raymi.tracking.description import NOTE
from raymi.tracking.metric_names import rounded
from raymi.tracking.mlflow_run import RUN_ID
from raymi.tracking.sweep_tracker import SweepTracker
from raymi.tracking.tracked_sweep import TrackedSweep
from raymi.tuning.events import EventKind, TrialEvent
from raymi.tuning.results_table import SweepResult
from raymi.tuning.space import Space
from raymi.tuning.study import Study, Trial
from raymi.tuning.sweep_folder import Sweep, TrialRun, best_so_far

mlflow = pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_store")]

TWO_KEYS = Space(
    name="two",
    description="how fast, and how wide",
    parameters={
        "optim.lr": {"log": (0.01, 0.1)},
        "width": {"choice": {"thin": {"model.width": 0.25}, "wide": {"model.width": 0.5}}},
    },
)
TUNE = {"trials": 4, "search": "random"}
SECRET = "s3cr3t-of-this-test"


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    short = {"optim.epochs": 2, "data.limit": 60, "mi.weight": 0}
    return begin(tmp_path / "sweeps" / "mine", TUNE, TWO_KEYS, **short)


class Driver:
    """Driver of a sweep without Ray: draws and trains trials, and sends their events."""

    def __init__(self, sweep: Sweep, study: Study | None = None) -> None:
        self.sweep, self.study = sweep, study or sweep.study()
        self.told: list[str] = []
        self.tracker = SweepTracker(sweep, self.study, Path.cwd(), self.told.append)
        self.tracker.start()

    def tell(self, kind: EventKind, number: int) -> None:
        self.tracker.on_trial_event(TrialEvent(kind, TrialRun(number, 0), self.study[number]))

    def ask(self) -> Trial:
        trial = self.study.ask()
        self.tell("began", trial.number)
        return trial

    def finish(self, trial: Trial | None = None) -> Trial:
        trial = trial or self.ask()
        ended, told = trained(self.sweep, TrialRun(trial.number, 0), trial.values)
        assert ended.status == "finished"
        self.study.finish(trial.number, [best_so_far(told)[-1].robust])
        self.tell("finished", trial.number)
        return trial

    def stop(self, trial: Trial) -> None:
        """Stops a trial after its first epoch, as others are ahead."""
        self.pause(trial)
        self.study.stop(trial.number)
        self.tell("stopped", trial.number)

    def pause(self, trial: Trial) -> None:
        ended, _ = trained(
            self.sweep,
            TrialRun(trial.number, 0),
            trial.values,
            lambda _: self.sweep.stop_file.touch(),
        )
        self.sweep.stop_file.unlink()
        assert ended.status == "paused"
        self.tell("paused", trial.number)

    def fail(self, trial: Trial, reason: str) -> None:
        self.study.fail(trial.number, reason)
        self.tell("failed", trial.number)

    def close(self, status: str = "FINISHED", winner: int | None = None) -> None:
        found = SweepResult(None if winner is None else TrialRun(winner, 0))
        assert self.tracker.conclude(status, WAIT, found), self.tracker.problem

    def evaluate(self, trial: Trial) -> dict[str, Any]:
        """Event of the chosen model."""
        config = self.sweep.config_of(trial.values, TrialRun(trial.number, 0))
        folder = self.sweep.folder_of(TrialRun(trial.number, 0))
        assert train(config, LocalContext(CPU, folder.stop_file), folder).finished
        (chosen,) = [one for one in events(folder.path, "evaluation") if one["chosen"]]
        return chosen


def in_mlflow() -> tuple[Any, dict[str, Any]]:
    """Run of the sweep, and runs of its trials by name."""
    (parent,) = [run for run in runs() if run.info.run_name == "mine"]
    ours = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"  # as MLflow's UI nests them
    found = client().search_runs([parent.info.experiment_id], ours)
    children = {run.info.run_name: run for run in found}
    assert len(runs()) == len(found) + 1 == len(children) + 1
    return parent, children


def values(run: Any, metric: str) -> list[tuple[int, float]]:
    return history(run.info.run_id, metric)


def artifact(run: Any, name: str) -> Path:
    return Path(client().download_artifacts(run.info.run_id, name))


def test_a_sweep_is_a_run_with_a_child_for_each_trial(sweep):
    driver = Driver(sweep)
    first = driver.finish()
    behind, broken = driver.ask(), driver.ask()
    driver.stop(behind)
    driver.fail(broken, "expected finite losses, got nan")
    driver.close("KILLED")
    parent, children = in_mlflow()
    assert parent.info.status == "KILLED"
    assert parent.data.params["space"] == "two"
    assert parent.data.params["recipe"] == "quickstart"
    assert parent.data.params["tune.search"] == "random"
    assert parent.data.params["optim.epochs"] == "2"
    assert parent.data.params["loss.base"] == "at", "what holds for all trials, given or not"
    assert not {"optim.lr", "seed"} & set(parent.data.params), "each trial has its own"
    assert parent.data.tags[RUN_ID] == sweep.definition.id
    assert f"resume={sweep.path}" in parent.data.tags["mlflow.note.content"]
    assert json.loads(artifact(parent, "sweep.json").read_text())["recipe"] == "quickstart"
    assert Space.model_validate_json(artifact(parent, "space.json").read_text()) == TWO_KEYS
    states = {
        "mine/0000": ("FINISHED", "Trial 0 finished."),
        "mine/0001": ("FINISHED", "Trial 1 stopped."),
        "mine/0002": ("FAILED", "Trial 2 failed: expected finite losses, got nan."),
    }
    assert states == {
        name: (run.info.status, run.data.tags[NOTE].partition("\n")[0])
        for name, run in children.items()
    }
    run = children["mine/0000"]
    assert run.data.params["optim.lr"] == run.data.params["swept.optim.lr"]
    assert run.data.params["optim.lr"] == str(first.values["optim.lr"])
    assert run.data.params["swept.width"] == first.values["width"]
    width = {"thin": "0.25", "wide": "0.5"}[first.values["width"]]
    assert run.data.params["model.width"] == width
    assert run.data.params["attack.steps"] == "2"
    assert run.data.params["trial"] == "0"
    for one in (parent, run):
        assert len([tag for tag in one.data.tags if tag.startswith("raymi.")]) <= 8
    robust = [
        rounded(event["val"]["robust_acc"])
        for event in events(sweep.folder_of(TrialRun(0, 0)).path, "epoch")
    ]
    assert values(run, "val/robust_acc") == [(1, robust[0]), (2, robust[1])]
    assert len(values(children["mine/0001"], "val/robust_acc")) == 1
    assert not client().search_logged_models([parent.info.experiment_id])
    assert driver.told == []


def test_runs_are_visible_while_the_sweep_is_running(sweep):
    driver = Driver(sweep)
    trial = driver.ask()
    wait_until(lambda: driver.tracker.run_id is not None and len(runs()) == 2)
    parent, children = in_mlflow()
    assert (parent.info.status, children["mine/0000"].info.status) == ("RUNNING", "RUNNING")
    driver.pause(trial)
    wait_until(lambda: values(children["mine/0000"], "val/robust_acc") != [])
    wait_until(lambda: in_mlflow()[1]["mine/0000"].info.status == "KILLED")
    assert values(parent, "trials_ended") == []
    driver.tell("began", trial.number)
    wait_until(lambda: in_mlflow()[1]["mine/0000"].info.status == "RUNNING")
    for _ in range(3):
        assert driver.tracker.flush(WAIT)
    assert in_mlflow()[1]["mine/0000"].info.status == "RUNNING", "after some more looks at it"
    driver.finish(trial)
    wait_until(lambda: values(parent, "trials_ended") == [(1, 1)])
    wait_until(lambda: in_mlflow()[1]["mine/0000"].info.status == "FINISHED")
    assert in_mlflow()[0].info.status == "RUNNING"
    assert values(parent, "epochs") == [(1, 2)]
    assert values(parent, "val/best_robust_acc") == [
        (1, rounded(sweep.measurements(TrialRun(0, 0))[-1].robust))
    ]
    assert [step for step, _ in values(children["mine/0000"], "val/robust_acc")] == [1, 2]
    driver.close("KILLED")


def test_sweep_curves_have_a_point_for_each_ended_trial(sweep):
    driver = Driver(sweep)
    driver.finish()
    assert driver.tracker.flush(WAIT)  # points of trials that end between two looks may be swapped
    driver.fail(driver.ask(), "out of memory")
    assert driver.tracker.flush(WAIT)
    driver.finish()
    driver.close("KILLED")
    parent, _ = in_mlflow()
    first, last = (rounded(sweep.measurements(TrialRun(number, 0))[-1].robust) for number in (0, 2))
    assert values(parent, "trials_ended") == [(1, 1), (2, 2), (3, 3)]
    assert values(parent, "epochs") == [(1, 2), (2, 2), (3, 4)]
    best = [(1, first), (2, first), (3, max(first, last))]
    assert values(parent, "val/best_robust_acc") == best


def test_a_failure_before_the_first_epoch_is_logged(sweep):
    driver = Driver(sweep)
    driver.fail(driver.ask(), "its process died again and again")
    driver.fail(driver.ask(), 10_000 * "x")
    driver.close()
    parent, children = in_mlflow()
    notes = [children[f"mine/000{number}"].data.tags[NOTE] for number in (0, 1)]
    assert notes[0].startswith("Trial 0 failed: its process died again and again.")
    assert "xxx... (10000 characters)" in notes[1]
    assert notes[1].endswith("```"), "the command is not cut"
    assert values(parent, "trials_ended") == [(1, 1), (2, 2)]
    assert values(parent, "val/best_robust_acc") == []


def test_the_result_of_a_sweep_is_on_its_run(sweep):
    driver = Driver(sweep)
    for _ in range(4):
        driver.finish()
    importance = driver.study.importance()
    (winner, *_) = driver.study.front()
    event = driver.evaluate(winner)
    driver.close(winner=winner.number)
    parent, children = in_mlflow()
    assert parent.info.status == "FINISHED"
    reached = [sweep.measurements(TrialRun(number, 0))[-1] for number in range(4)]
    table = pandas.read_csv(artifact(parent, "trials.csv"), float_precision="round_trip")
    columns = ["trial", "state", "optim.lr", "width", "epochs", "clean", "robust", "reason"]
    assert list(table.columns) == columns
    assert table["robust"].is_monotonic_decreasing
    by_number = table.sort_values("trial")
    assert by_number["robust"].tolist() == [one.robust for one in reached]
    assert by_number["optim.lr"].tolist() == [trial.values["optim.lr"] for trial in driver.study]
    with store.use_store(client().tracking_uri):
        experiment = parent.info.experiment_id
        shown = client().load_table(experiment, "trials.json", run_ids=[parent.info.run_id])
    assert shown["robust"].tolist() == pytest.approx(table["robust"].tolist())
    assert shown["optim/lr"].tolist() == pytest.approx(table["optim.lr"].tolist())
    assert json.loads(artifact(parent, "importance.json").read_text()) == importance
    assert set(importance) == {"optim.lr", "width"}
    for picture in ("pareto.png", "importance.png"):
        assert artifact(parent, picture).read_bytes().startswith(b"\x89PNG")
    tags = parent.data.tags
    assert tags["raymi.winner"] == str(winner.number)
    (version,) = client().search_model_versions("name = 'raymi-digits'")
    assert version.run_id == children[f"mine/{winner.number:04d}"].info.run_id
    assert values(parent, "test/pgd2_acc") == [(0, rounded(event["robust"]))]
    assert values(parent, "test/clean_acc") == [(0, rounded(event["clean"]))]
    note = tags["mlflow.note.content"]
    assert f"Chosen on validation: trial {winner.number}, optim.lr=" in note
    assert "digits, 40 test images" in note


def test_a_resumed_sweep_delivers_everything_once(sweep):
    driver = Driver(sweep)
    driver.finish()
    cut = driver.ask()
    driver.pause(cut)
    driver.close("KILLED")
    before, children = in_mlflow()
    assert children["mine/0001"].info.status == "KILLED"
    again = Driver(sweep)
    (left,) = again.study.unfinished()
    again.tell("began", left.number)
    again.finish(left)
    again.close(winner=0)
    for _ in range(2):  # nothing is new
        Driver(sweep).close(winner=0)
    parent, children = in_mlflow()
    assert parent.info.run_id == before.info.run_id
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    for run in children.values():
        assert [step for step, _ in values(run, "val/robust_acc")] == [1, 2]
    assert values(parent, "trials_ended") == [(1, 1), (2, 2)]
    assert len(pandas.read_csv(artifact(parent, "trials.csv"))) == 2
    assert parent.data.tags["raymi.winner"] == "0"


def test_undelivered_data_of_a_killed_process_is_delivered_by_the_next(sweep):
    driver = Driver(sweep)
    trial = driver.ask()
    wait_until(lambda: len(runs()) == 2)
    driver.tracker.abandon()
    driver.tracker.join(WAIT)
    driver.pause(trial)
    Driver(sweep).close("KILLED")
    parent, children = in_mlflow()
    assert (parent.info.status, children["mine/0000"].info.status) == ("KILLED", "KILLED")
    assert [step for step, _ in values(children["mine/0000"], "val/robust_acc")] == [1]


def test_a_winner_evaluated_in_a_later_process_is_registered_once(sweep):
    driver = Driver(sweep)
    trial = driver.finish()
    driver.close("FAILED")
    assert "Its model" not in in_mlflow()[0].data.tags[NOTE]
    later = Driver(sweep)
    event = later.evaluate(trial)
    later.close(winner=0)
    Driver(sweep).close(winner=0)
    parent, _ = in_mlflow()
    assert "Its model: `models:/raymi-digits/1`" in parent.data.tags["mlflow.note.content"]
    assert values(parent, "test/pgd2_acc") == [(0, rounded(event["robust"]))]
    assert values(parent, "trials_ended") == [(1, 1)]
    assert len(client().search_model_versions("name = 'raymi-digits'")) == 1


def test_the_model_of_a_sweep_can_be_selected(sweep, capsys):
    driver = Driver(sweep)
    trial = driver.finish()
    driver.evaluate(trial)
    driver.close(winner=0)
    assert select.main(["sweep=mine", "clean>=0"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 models on digits-test (40 images), linf_0.2, ranked by pgd-2-of-training" in said
    assert "chosen: mine/0000/" in said
    _, children = in_mlflow()
    version = client().get_model_version_by_alias("raymi-digits", "champion")
    assert version.run_id == children["mine/0000"].info.run_id
    assert select.main(["sweep=mein"]) == 2
    assert "no sweep 'mein' in MLflow: did you mean mine?" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["search_runs", "create_run", "log_batch", "set_terminated"])
def test_an_unreachable_store_prints_one_line_and_gets_the_data_later(sweep, monkeypatch, call):
    outage = Outage(monkeypatch, call)
    driver = Driver(sweep)
    driver.finish()
    driver.fail(driver.ask(), "out of memory")
    wait_until(lambda: outage.failures >= 3)
    assert driver.tracker.close("KILLED", timeout=0.3) is False
    driver.tracker.join(WAIT)
    (line,) = driver.told
    assert "rejects data: ConnectionError: " in line
    assert line.endswith("the sweep continues, and unsent data are queued")
    outage.over = True
    Driver(sweep).close()
    parent, children = in_mlflow()
    assert [run.info.status for run in children.values()] == ["FAILED", "FINISHED"]
    assert values(parent, "trials_ended") == [(1, 1), (2, 2)]
    assert [step for step, _ in values(children["mine/0000"], "val/robust_acc")] == [1, 2]


def test_a_store_that_answers_again_gets_all_data(sweep, monkeypatch):
    outage = Outage(monkeypatch, "log_batch")
    driver = Driver(sweep)
    driver.finish()
    driver.finish()
    wait_until(lambda: outage.failures >= 3)
    outage.over = True
    driver.close()
    assert len(driver.told) == 2
    assert driver.told[1] == "MLflow answers again"
    parent, children = in_mlflow()
    assert values(parent, "trials_ended") == [(1, 1), (2, 2)]
    for run in children.values():
        assert [step for step, _ in values(run, "val/robust_acc")] == [1, 2]


def test_a_slow_server_does_not_block_the_sweep(sweep, monkeypatch):
    answers, real = threading.Event(), mlflow.MlflowClient.create_run

    def slowly(*args: Any, **kwargs: Any) -> Any:
        assert answers.wait(WAIT)
        return real(*args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", slowly)
    driver = Driver(sweep)
    driver.finish()
    driver.finish()
    assert (runs(), driver.told) == ([], [])
    answers.set()
    driver.close()
    _, children = in_mlflow()
    assert len(children) == 2


def test_an_undeliverable_trial_does_not_block_the_others(sweep, monkeypatch):
    monkeypatch.setattr(sweep_tracker, "FAIL_SECONDS", WAIT)  # on a busy machine all takes longer
    driver = Driver(sweep)
    driver.finish()
    wait_until(lambda: len(runs()) == 2)
    driver.close("KILLED")
    trial = driver.study.ask()
    sweep.folder_of(TrialRun(trial.number, 0)).path.mkdir(parents=True)
    sweep.folder_of(TrialRun(trial.number, 0)).tracking.mkdir()  # nothing can be kept there
    driver.study.fail(trial.number, "out of memory")
    again = Driver(sweep)
    wait_until(lambda: bool(again.told))
    again.finish()
    ended = ("mine/0002", "FINISHED")
    wait_until(lambda: ended in {(run.info.run_name, run.info.status) for run in runs()})
    assert len(again.told) == 1
    closing = threading.Thread(
        target=again.tracker.conclude, args=("FINISHED", WAIT, SweepResult(TrialRun(0, 0)))
    )
    closing.start()
    wait_until(lambda: in_mlflow()[0].info.status == "FINISHED")
    assert in_mlflow()[0].data.tags["raymi.winner"] == "0"
    assert closing.is_alive(), "as data are undelivered"
    sweep.folder_of(TrialRun(trial.number, 0)).tracking.rmdir()
    closing.join(WAIT)
    assert {run.info.status for run in runs()} == {"FINISHED", "FAILED"}


def test_a_sweep_run_deleted_meanwhile_is_recreated(sweep):
    driver = Driver(sweep)
    driver.finish()
    assert driver.tracker.flush(WAIT)
    under_way = driver.ask()
    wait_until(lambda: len(runs()) == 3)
    client().delete_run(deleted := driver.tracker.run_id)
    driver.finish(under_way)
    wait_until(lambda: driver.tracker.run_id != deleted)
    driver.finish()
    driver.close()
    parent, children = in_mlflow()
    assert parent.info.status == "FINISHED"
    assert [step for step, _ in values(parent, "trials_ended")] == [1, 2, 3]
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert set(children) == {"mine/0000", "mine/0001", "mine/0002"}
    assert len(driver.told) == 2, "that the store rejects data, and that it answers again"


def test_a_deleted_sweep_run_is_recreated_with_its_children(sweep):
    driver = Driver(sweep)
    driver.finish()
    driver.close("KILLED")
    parent, _ = in_mlflow()
    client().delete_run(parent.info.run_id)
    Driver(sweep).close()
    again, children = in_mlflow()
    assert again.info.run_id != parent.info.run_id
    assert list(children) == ["mine/0000"]
    assert values(again, "trials_ended") == [(1, 1)]


def test_a_resumed_sweep_stays_in_its_store_from_any_folder(sweep, tmp_path, monkeypatch):
    driver = Driver(sweep)
    driver.finish()
    driver.close("KILLED")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = Driver(sweep)
    again.close()
    assert again.tracker.uri == driver.tracker.uri
    assert again.tracker.run_id == driver.tracker.run_id
    assert not list(elsewhere.iterdir())


def test_a_sweep_stores_its_address_without_the_password(sweep, monkeypatch):
    there = client()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@tracking:5000")
    monkeypatch.setattr(store, "connect", lambda uri: there)
    TrackedSweep(sweep, Path.cwd(), print).connect()
    kept = (sweep.path / "tracking.json").read_text()
    assert json.loads(kept) == {"uri": "http://tracking:5000"}


def test_an_unreachable_server_is_named_without_its_password(sweep, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    driver = Driver(sweep)
    driver.finish()
    wait_until(lambda: bool(driver.told))
    assert driver.tracker.close("FINISHED", timeout=0.1) is False
    assert "127.0.0.1:9" in driver.told[0]
    assert SECRET not in driver.told[0] + (driver.tracker.problem or "")


def test_invalid_drawn_values_are_logged_as_drawn(tmp_path):
    split = {"data.val_fraction": {"uniform": (2.0, 3.0)}}
    space = Space(name="split", description="", parameters=split)
    sweep = begin(tmp_path / "sweeps" / "mine", TUNE, space, **{"optim.epochs": 1})
    driver = Driver(sweep)
    trial = driver.ask()
    ended, _ = trained(sweep, TrialRun(trial.number, 0), trial.values)
    assert ended.status == "failed"
    driver.fail(trial, ended.reason)
    driver.close()
    _, children = in_mlflow()
    drawn = str(trial.values["data.val_fraction"])
    assert children["mine/0000"].data.params["data.val_fraction"] == drawn
    assert ended.reason in children["mine/0000"].data.tags[NOTE]


def test_idle_delivery_polls_rarely(sweep, monkeypatch):
    monkeypatch.setattr("raymi.tracking.delivery.POLL_SECONDS", 0.5)
    driver = Driver(sweep)
    driver.finish()
    assert driver.tracker.flush(WAIT)
    looks, send = [], driver.tracker.tracked.log_progress
    driver.tracker.tracked.log_progress = lambda trials: (looks.append(1), send(trials))
    since = time.monotonic()
    wait_until(lambda: len(looks) >= 3)
    assert time.monotonic() - since >= 2 * 0.5, "between three looks"
    driver.close()
