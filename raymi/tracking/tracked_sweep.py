"""Run of a sweep in MLflow: search space, progress and result."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from raymi.errors import UserError
from raymi.files import write_atomically
from raymi.overrides import flatten
from raymi.runs.json_files import read_json
from raymi.runs.json_types import SweepTracking
from raymi.runs.record import Evaluations, chosen_model, read_record, read_tracking
from raymi.tracking import store
from raymi.tracking.description import NOTE, sweep_description
from raymi.tracking.metric_names import ROBUST, rounded
from raymi.tracking.mlflow_run import MlflowRun
from raymi.tracking.provenance import PROVENANCE, provenance, run_tags
from raymi.tracking.tracked_run import TrackedRun
from raymi.tuning.plots import importance_picture, pareto_picture
from raymi.tuning.results_table import Row, SweepResult, as_columns, trial_rows
from raymi.tuning.study import Trial
from raymi.tuning.sweep_folder import Sweep, TrialRun

_TABLE = "trials.json"


class _Progress(NamedTuple):
    """Progress of a sweep.

    Attributes:
        ended: number of trials.
        best: highest robust validation accuracy of these trials; None: none is known.
        epochs: of these trials.
        time: in seconds since the epoch.
    """

    ended: int
    best: float | None
    epochs: int
    time: float


class TrackedSweep(MlflowRun):
    """Sweep folder and its run in MLflow, the parent of its trials' runs.

    Args:
        sweep: of the trials.
        home: folder of the local store if no server is set.
        log: callback for a line where the winner's model cannot be logged.
    """

    def __init__(self, sweep: Sweep, home: Path, log: Callable[[str], None]) -> None:
        self.sweep, self.log = sweep, log
        self._file = sweep.path / "tracking.json"
        delivered: dict[str, Any] = {}
        if self._file.is_file():
            remedy = "remove it, the sweep is found in MLflow again"
            delivered = read_json(self._file, SweepTracking, remedy).model_dump()
        super().__init__(sweep.path, home, store.store_uri(delivered, home))
        self._run_id: str | None = None
        self._about: dict[str, str] = {}
        self._progress: dict[int, _Progress] = {}
        """Progress at the end of each trial, by its number."""
        self._points_logged = 0

    @property
    def run_id(self) -> str | None:
        """Id in MLflow; None until the run was found or created."""
        return self._run_id

    def _prepare(self) -> Any:
        definition = self.sweep.definition
        if not self._about:
            self._about = {"recipe": definition.recipe, **provenance(definition.command)}
        run = self._find_or_create(
            self.sweep.config_of({}).tracking.experiment,
            self.sweep.name,
            {**self._about, "id": definition.id},
            sweep_description(self.sweep),
            run_tags(self.sweep.config_of({}), definition.recipe),
        )
        delivered = {"uri": store.without_password(self.uri)}
        write_atomically(self._file, json.dumps(delivered).encode())
        if run.info.run_id != self._run_id:
            self._describe(run)
            self._points_logged = int(run.data.metrics.get("trials_ended", 0))
            self._run_id = run.info.run_id
        return run

    def _describe(self, run: Any) -> None:
        """Logs parameters and definition of the sweep."""
        definition, run_id = self.sweep.definition, run.info.run_id
        params = {**definition.settings, "recipe": definition.recipe}
        params |= {"space": definition.space.name, "seeds": ",".join(map(str, definition.seeds))}
        params |= {f"tune.{key}": value for key, value in definition.tune.model_dump().items()}
        common = flatten(json.loads(self.sweep.config_of({}).model_dump_json()))
        varied = {"seed", *definition.space.keys}
        params = {k: value for k, value in common.items() if k not in varied} | params
        self._log_params(run, params)
        self._client.log_artifact(run_id, str(self.sweep.path / "sweep.json"))
        space = definition.space.model_dump(mode="json", exclude_defaults=True)
        self._client.log_dict(run_id, space, "space.json")
        self._client.log_dict(run_id, self._about, PROVENANCE)
        self._set_running(run)

    def check_store(self) -> None:
        """Reads the run, to see whether the store answers.

        Raises:
            Exception: any error of MLflow.
        """
        self._client.get_run(self.run_id)

    def trial_run(self, run: TrialRun, trial: Trial) -> TrackedRun:
        """Returns a run of a trial as a child; creates its folder if missing."""
        definition = self.sweep.definition
        params = {f"swept.{name}": value for name, value in trial.values.items()}
        params["trial"] = run.number
        try:
            config = self.sweep.config_of(trial.values, run)
        except UserError:  # the trial fails by the same error
            config = self.sweep.config_of({}, run)
            params |= flatten(definition.space.settings(trial.values))
        folder = self.sweep.folder_of(run)
        folder.path.mkdir(parents=True, exist_ok=True)
        about = {**self._about, "id": f"{definition.id}-{folder.name}", "sweep": self.sweep.name}
        return TrackedRun(
            config,
            folder,
            about,
            self.home,
            uri=self.uri,
            name=f"{self.sweep.name}/{folder.name}",
            parent=self.run_id,
            params=params,
            log=self.log,
        )

    def log_progress(self, trials: Iterable[Trial]) -> None:
        """Logs the curves of the sweep, with a point for each trial that has ended.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        from mlflow.entities import Metric

        new = [t for t in trials if t.state != "running" and t.number not in self._progress]
        for trial in sorted(new, key=lambda one: self._last_write(one.number)):
            self._progress[trial.number] = self._progress_with(trial)
        for point in list(self._progress.values())[self._points_logged :]:
            values: dict[str, float] = {"trials_ended": point.ended, "epochs": point.epochs}
            if point.best is not None:
                values["val/best_robust_acc"] = point.best
            when = max(int(1000 * point.time), self._began)
            metrics = [Metric(key, rounded(v), when, point.ended) for key, v in values.items()]
            self._client.log_batch(self.run_id, metrics=metrics)
            self._points_logged = point.ended

    def _progress_with(self, trial: Trial) -> _Progress:
        """Returns the progress after a further trial."""
        time = self._last_write(trial.number)
        before = (
            list(self._progress.values())[-1] if self._progress else _Progress(0, None, 0, time)
        )
        (row,) = trial_rows(self.sweep, [trial])
        best, epochs = before.best, before.epochs
        if row.by_seed:
            best = max(row.robust, best or 0.0)
            epochs += sum(one.epoch for one in row.by_seed.values())
        return _Progress(before.ended + 1, best, epochs, max(before.time, time))

    def _last_write(self, number: int) -> float:
        """Returns when a run of a trial last wrote; of a trial without runs, when the sweep began.

        In seconds since the epoch.
        """
        journals = [self.sweep.folder_of(run).journal for run in self.sweep.runs_of(number)]
        files = [path for path in journals if path.is_file()] or [self.sweep.path / "sweep.json"]
        return max(path.stat().st_mtime for path in files)

    def conclude(
        self,
        status: str,
        rows: Sequence[Row],
        importance: Mapping[str, float],
        result: SweepResult,
    ) -> None:
        """Logs the result of the sweep and sets the status of its run.

        Args:
            status: FINISHED, KILLED or FAILED.
            rows: of the trials.
            importance: fractions by parameter; empty: not known.
            result: of the sweep so far.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        client, run_id = self._client, self.run_id
        if status != "FINISHED":  # first: little time may be left
            self._end(status)
        header, lines = as_columns(rows)
        client.log_text(run_id, _csv(header, lines), "trials.csv")
        names = [name.replace(".", "/") for name in header]  # the UI shows no names with dots
        client.log_text(run_id, json.dumps({"columns": names, "data": lines}), _TABLE)
        tables = json.dumps([{"path": _TABLE, "type": "table"}])
        client.set_tag(run_id, "mlflow.loggedArtifacts", tables)  # so that the UI shows a table
        client.log_figure(run_id, pareto_picture(self.sweep.name, rows), "pareto.png")
        if importance:
            client.log_dict(run_id, dict(importance), "importance.json")
            picture = importance_picture(self.sweep.name, importance)
            client.log_figure(run_id, picture, "importance.png")
        evaluations: Evaluations = {}
        model = None
        if (winner := result.winner) is not None:
            evaluations = read_record(self.sweep.folder_of(winner)).evaluations
            model = self._model_uri(winner, evaluations)
            (row,) = (row for row in rows if row.number == winner.number)
            self._log_winner(row, evaluations, result)
        text = sweep_description(self.sweep, rows, importance, winner, evaluations, model)
        client.set_tag(run_id, NOTE, text)
        self._end(status)

    def _log_winner(self, row: Row, evaluations: Evaluations, result: SweepResult) -> None:
        client, run_id = self._client, self.run_id
        if row.final is not None:
            for key, value in (("pgd40", row.final.pgd), ("autoattack", row.final.autoattack)):
                if value is not None:
                    client.log_metric(run_id, f"final/val_{key}_acc", rounded(value), step=0)
        if evaluations:
            event = evaluations[chosen_model(evaluations)]
            attack = f"test/pgd{event['attack']['steps']}_acc"
            when = int(1000 * event["time"])
            values = {"test/clean_acc": event["clean"], ROBUST: event["robust"]}
            for key, value in {**values, attack: event["robust"]}.items():
                client.log_metric(run_id, key, rounded(value), timestamp=when, step=0)
        client.set_tag(run_id, "raymi.winner", str(row.number))
        numbers = {f"{name.replace('-', '')}_acc": value for name, value in result.test.items()}
        if numbers:  # may be of fewer images than the winner's own evaluation
            numbers["num"] = result.num_test
        for key, value in numbers.items():
            client.log_metric(run_id, f"final/test_{key}", rounded(value), step=0)

    def _model_uri(self, run: TrialRun, evaluations: Evaluations) -> str | None:
        """Returns the address of a run's chosen model; None before it is logged."""
        delivered = read_tracking(self.sweep.folder_of(run))
        return delivered.get("models", {}).get(chosen_model(evaluations)) if evaluations else None


def _csv(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
