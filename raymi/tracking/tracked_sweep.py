"""The run of a whole sweep in MLflow: what it searches, how far it is, and what it found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from raymi.errors import UserError
from raymi.files import write_atomically
from raymi.overrides import flatten
from raymi.runs.kept_json import read_kept
from raymi.runs.record import chosen_model, read_delivered, read_record
from raymi.runs.records import DeliveredSweep
from raymi.tracking import store
from raymi.tracking.description import NOTE
from raymi.tracking.left_running import PLACE, close_left_running, place_of
from raymi.tracking.provenance import provenance, source_tags
from raymi.tracking.sweep_description import describe_sweep
from raymi.tracking.tracked_run import TrackedRun
from raymi.tuning.plots import importance_picture, pareto_picture
from raymi.tuning.results_table import Row, SweepResult, as_columns, trial_rows
from raymi.tuning.study import Trial
from raymi.tuning.sweep_folder import Sweep, TrialRun

_TABLE = "trials.json"


class _Point(NamedTuple):
    """How far a sweep was when some trials had ended: the highest robust accuracy on validation and
    the epochs of these trials; when that was."""

    ended: int
    best: float | None
    epochs: int
    time: float


class TrackedSweep:
    """A sweep's folder and its run in MLflow, which is the parent of those of the trials.

    Args:
        home: folder of the local store where no server is named.
        tell: shown a line where the winner's model cannot be logged.
    """

    def __init__(self, sweep: Sweep, home: Path, tell: Callable[[str], None]) -> None:
        self.sweep, self.home, self.tell = sweep, home, tell
        self._place = sweep.path / "tracking.json"
        kept: dict[str, Any] = {}
        if self._place.is_file():
            remedy = "remove it, the sweep is found in MLflow again"
            kept = read_kept(self._place, DeliveredSweep, remedy).model_dump()
        self.uri: str = store.address(kept, home)
        """Address of the MLflow store."""
        self.run_id: str | None = None
        """The run in MLflow; None until it was found or made."""
        self._about: dict[str, str] = {}
        self._client: Any = None
        self._connected = False
        self._status = "RUNNING"  # while it has not ended; see `interrupt`
        self._began = 0  # milliseconds since the epoch
        self._ended: dict[int, _Point] = {}
        self._points_sent = 0

    def connect(self) -> None:
        """Finds or makes the run, the first time and after `doubt`.

        Raises: whatever MLflow raises where the store does not answer.
        """
        if self._connected:
            return
        definition = self.sweep.definition
        if not self._about:
            self._about = {"recipe": definition.recipe, **provenance(definition.command)}
        if self._client is None:
            self._client = store.connect(self.uri)
        experiment = store.experiment_id(
            self._client, self.sweep.config_of({}).tracking.experiment, self.home
        )
        run = store.find_run(self._client, experiment, definition.id)
        if run is None:
            about = {**self._about, "id": definition.id, "space": definition.space.name}
            tags = {f"raymi.{key}": text for key, text in about.items()}
            tags[NOTE] = describe_sweep(self.sweep)
            tags |= source_tags(self._about) | {PLACE: place_of(self.sweep.path)}
            run = self._client.create_run(experiment, run_name=self.sweep.name, tags=tags)
        kept = {"uri": store.without_password(self.uri)}
        write_atomically(self._place, json.dumps(kept).encode())
        if run.info.run_id != self.run_id:
            self._describe(run.info.run_id)
            self._points_sent = int(run.data.metrics.get("trials_ended", 0))
            self.run_id = run.info.run_id
        self._began = run.info.start_time or 0
        self._connected = True
        if self._status != "RUNNING":  # interrupted since
            store.end_run(self._client, run.info.run_id, self._status)
        else:
            with suppress(Exception):  # of other runs: this one is delivered all the same
                close_left_running(self._client, experiment, self.run_id)

    def interrupt(self, status: str) -> None:
        """Sets the status that the run has until it has ended, such as KILLED; called from another
        thread than the delivery's.

        Raises: any error of MLflow where the store does not answer.
        """
        self._status = status
        if self._connected and self.run_id is not None:
            store.end_run(self._client, self.run_id, self._status)

    def doubt(self) -> None:
        """After a failure the run may be gone, too: it is looked for at the next try."""
        self._connected = False

    def _describe(self, run_id: str) -> None:
        definition = self.sweep.definition
        tune = definition.tune.model_dump()
        settings = {"recipe": definition.recipe, "space": definition.space.name}
        settings |= {f"tune.{key}": value for key, value in tune.items()}
        settings["seeds"] = ",".join(map(str, definition.seeds))
        common = flatten(json.loads(self.sweep.config_of({}).model_dump_json()))
        varied = {"seed", *definition.space.keys}
        told = {**definition.settings, **settings}
        told |= {k: value for k, value in common.items() if k not in varied and k not in told}
        store.log_params(self._client, run_id, told)
        self._client.log_artifact(run_id, str(self.sweep.path / "sweep.json"))
        space = definition.space.model_dump(mode="json", exclude_defaults=True)
        self._client.log_dict(run_id, space, "space.json")
        self._client.set_tag(run_id, PLACE, place_of(self.sweep.path))
        self._client.update_run(run_id, status=self._status)

    def check_store(self) -> None:
        """Raises: whatever MLflow raises where the store does not answer."""
        self._client.get_run(self.run_id)

    def child(self, run: TrialRun, trial: Trial) -> TrackedRun:
        """A run of a trial, whose folder is made where its process has not done so yet."""
        definition = self.sweep.definition
        params = {f"swept.{name}": value for name, value in trial.values.items()}
        try:
            config = self.sweep.config_of(trial.values, run)
        except UserError:  # the trial fails by the same; it is shown with what it drew
            config = self.sweep.config_of({}, run)
            params |= flatten(definition.space.settings(trial.values))
        folder = self.sweep.folder_of(run)
        folder.path.mkdir(parents=True, exist_ok=True)
        about = {
            **self._about,
            "id": f"{definition.id}-{folder.name}",
            "sweep": self.sweep.name,
            "trial": run.number,
            "seed": run.seed,
        }
        return TrackedRun(
            config,
            folder,
            about,
            self.home,
            uri=self.uri,
            name=f"{self.sweep.name}/{folder.name}",
            parent=self.run_id,
            params=params,
            tell=self.tell,
        )

    def send_progress(self, trials: Iterable[Trial]) -> None:
        """Brings the curves of the sweep up to date: a point for each trial that has ended.

        Raises: whatever MLflow raises where the store does not answer.
        """
        from mlflow.entities import Metric

        new = [one for one in trials if one.state != "running" and one.number not in self._ended]
        for trial in sorted(new, key=lambda one: self._last_seen(one.number)):
            self._ended[trial.number] = self._next_point(trial)
        for point in list(self._ended.values())[self._points_sent :]:
            values: dict[str, float] = {"trials_ended": point.ended, "epochs": point.epochs}
            if point.best is not None:
                values["val/best_robust_acc"] = point.best
            when = max(int(1000 * point.time), self._began)
            metrics = [Metric(key, v, when, point.ended) for key, v in values.items()]
            self._client.log_batch(self.run_id, metrics=metrics)
            self._points_sent = point.ended

    def _next_point(self, trial: Trial) -> _Point:
        seen = self._last_seen(trial.number)
        start = _Point(0, None, 0, seen)
        before = list(self._ended.values())[-1] if self._ended else start
        (row,) = trial_rows(self.sweep, [trial])
        best, epochs = before.best, before.epochs
        if row.by_seed:
            best = max(row.robust, best or 0.0)
            epochs += sum(one.epoch for one in row.by_seed.values())
        return _Point(before.ended + 1, best, epochs, max(before.time, seen))

    def _last_seen(self, number: int) -> float:
        """When a run of a trial last wrote; of one that never did, when the sweep began."""
        journals = [self.sweep.folder_of(run).journal for run in self.sweep.runs_of(number)]
        there = [path for path in journals if path.is_file()] or [self.sweep.path / "sweep.json"]
        return max(path.stat().st_mtime for path in there)

    def conclude(
        self,
        status: str,
        rows: Sequence[Row],
        importance: Mapping[str, float],
        found: SweepResult,
    ) -> None:
        """Tells what the sweep has found by now, and sets the run's status.

        Args: importance, fractions by the name of a parameter, empty where it is not known.
        Raises: whatever MLflow raises where the store does not answer.
        """
        client, run_id = self._client, self.run_id
        assert run_id is not None  # as it is connected
        if status != "FINISHED":  # first: little time may be left
            store.end_run(client, run_id, status)
        header, lines = as_columns(rows)
        client.log_text(run_id, _csv(header, lines), "trials.csv")
        names = [name.replace(".", "/") for name in header]  # the UI leaves names with dots empty
        client.log_text(run_id, json.dumps({"columns": names, "data": lines}), _TABLE)
        tables = json.dumps([{"path": _TABLE, "type": "table"}])
        client.set_tag(run_id, "mlflow.loggedArtifacts", tables)  # so that its UI shows it as one
        client.log_figure(run_id, pareto_picture(self.sweep.name, rows), "pareto.png")
        if importance:
            client.log_dict(run_id, dict(importance), "importance.json")
            picture = importance_picture(self.sweep.name, importance)
            client.log_figure(run_id, picture, "importance.png")
        evaluations: dict[str, Any] = {}
        model = None
        if (winner := found.winner) is not None:
            evaluations = read_record(self.sweep.folder_of(winner)).evaluations
            model = self._model_of(winner, evaluations)
            (row,) = (row for row in rows if row.number == winner.number)
            self._tell_winner(winner, row, evaluations, model)
            numbers = {f"{name.replace('-', '')}_acc": value for name, value in found.test.items()}
            if numbers:  # of fewer images than those of the winner's own evaluation, perhaps
                numbers["num"] = found.num_test
            for key, value in numbers.items():
                self._client.log_metric(run_id, f"final/test_{key}", value, step=0)
        text = describe_sweep(self.sweep, rows, importance, winner, evaluations, model)
        client.set_tag(run_id, NOTE, text)
        store.end_run(client, run_id, status)

    def _tell_winner(
        self, winner: TrialRun, row: Row, evaluations: Mapping[str, Any], model: str | None
    ) -> None:
        tags = {"raymi.winner": str(winner.number)}
        tags["raymi.winner_settings"] = " ".join(self.sweep.settings_words(row.values))
        if model is not None:
            tags["raymi.winner_model"] = model
        if row.final is not None:
            for key, value in (("pgd40", row.final.pgd), ("autoattack", row.final.autoattack)):
                if value is not None:
                    self._client.log_metric(self.run_id, f"final/val_{key}_acc", value, step=0)
        if evaluations:
            event = evaluations[chosen_model(evaluations)]
            robust = f"test/pgd{event['attack']['steps']}_acc"
            when = int(1000 * event["time"])
            for key, value in (("test/clean_acc", event["clean"]), (robust, event["robust"])):
                self._client.log_metric(self.run_id, key, value, timestamp=when, step=0)
        for tag, text in tags.items():
            self._client.set_tag(self.run_id, tag, text)

    def _model_of(self, run: TrialRun, evaluations: Mapping[str, Any]) -> str | None:
        """The address of a run's chosen model; None before it is logged."""
        kept = read_delivered(self.sweep.folder_of(run))
        return kept.get("models", {}).get(chosen_model(evaluations)) if evaluations else None


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
