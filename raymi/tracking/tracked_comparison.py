"""Comparison in MLflow: a run with means and paired differences, and a child for each run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from raymi.config import Config
from raymi.overrides import flatten
from raymi.runs.run_folder import RunFolder
from raymi.tracking import store
from raymi.tracking.delivery import Delivery
from raymi.tracking.description import NOTE
from raymi.tracking.metric_names import rounded
from raymi.tracking.mlflow_run import MlflowRun
from raymi.tracking.provenance import run_tags
from raymi.tracking.tracked_run import TrackedRun

_TABLE = "comparison.json"


class EndedRun(NamedTuple):
    """Run of a comparison that has ended.

    Attributes:
        folder: of the run.
        config: of the run.
        status: in MLflow.
        outcome: line of the description; empty for a finished run.
    """

    folder: RunFolder
    config: Config
    status: str
    outcome: str = ""


@dataclass(frozen=True)
class ComparisonState:
    """Results of a comparison so far.

    Attributes:
        runs: that have ended.
        metrics: means, standard errors and paired differences.
        rows: of the table; the first row is the header.
        note: description as Markdown.
    """

    note: str
    runs: Sequence[EndedRun] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: Sequence[Sequence[str]] = ()


class TrackedComparison(MlflowRun):
    """Folder of a comparison and its run in MLflow, the parent of its runs.

    Args:
        folder: of the comparison, with facts about it.
        configs: of all runs; the settings that they share become parameters.
        params: further parameters.
        home: folder of the local store if no server is set.
    """

    def __init__(
        self,
        folder: RunFolder,
        configs: Sequence[Config],
        params: Mapping[str, Any],
        home: Path,
    ) -> None:
        super().__init__(folder.path, home, store.tracking_uri(home))
        self.folder, self._config = folder, configs[0]
        first, *others = (flatten(json.loads(one.model_dump_json())) for one in configs)
        shared = {k: v for k, v in first.items() if all(one.get(k) == v for one in others)}
        self._params = {**shared, **params}
        self._run_id: str | None = None
        self._num_logged = 0

    @property
    def run_id(self) -> str | None:
        """Id in MLflow; None until the run was found or created."""
        return self._run_id

    def _prepare(self) -> Any:
        about = self.folder.read_about()
        tags = {**run_tags(self._config, about["recipe"]), "raymi.method": self._params["arms"]}
        experiment = self._config.tracking.experiment
        run = self._find_or_create(experiment, self.folder.name, about, "", tags)
        if run.info.run_id != self._run_id:
            self._log_params(run, self._params)
            self._num_logged = int(run.data.metrics.get("runs_ended", 0))
            self._run_id = run.info.run_id
        self._set_running(run)
        return run

    def log_state(self, state: ComparisonState) -> None:
        """Logs results: metrics with the number of ended runs as step, table and description.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        num = len(state.runs)
        for name, value in {**state.metrics, "runs_ended": num}.items() if num else ():
            if num > self._num_logged:
                self._client.log_metric(self._run_id, name, rounded(value), step=num)
        self._num_logged = max(num, self._num_logged)
        if state.rows:
            header, *lines = state.rows
            table = json.dumps({"columns": header, "data": lines})
            self._client.log_text(self._run_id, table, _TABLE)
            shown = json.dumps([{"path": _TABLE, "type": "table"}])
            self._client.set_tag(self._run_id, "mlflow.loggedArtifacts", shown)
        self._client.set_tag(self._run_id, NOTE, store.as_tag(state.note))

    def end(self, status: str) -> None:
        """Sets the status and the end of the run."""
        self._end(status)


class ComparisonTracker(Delivery):
    """Delivery of a comparison and its ended runs, in a thread.

    The runs' models are logged, but not registered: a comparison has many.

    Args:
        tracked: the comparison.
        state: results so far.
        log: callback for a line when the store stops and resumes answering.
    """

    def __init__(
        self, tracked: TrackedComparison, state: ComparisonState, log: Callable[[str], None]
    ) -> None:
        super().__init__(tracked.uri, "comparison", log)
        self.tracked = tracked
        self._state, self._logged = state, ComparisonState("")
        self._lock = threading.Lock()

    def update(self, state: ComparisonState) -> None:
        """Queues new results; returns immediately."""
        with self._lock:
            self._state = state
        self._wake.set()

    def _deliver(self, closing: str | None) -> None:
        with self._lock:
            state = self._state
        try:
            self.tracked.connect()
            for run in state.runs:
                self._deliver_run(run)
            if state is not self._logged:
                self.tracked.log_state(state)
                self._logged = state
            if closing is not None:
                self.tracked.end(closing)
        except Exception:
            self.tracked.disconnect()
            raise

    def _deliver_run(self, run: EndedRun) -> None:
        about = run.folder.read_about()
        if "id" not in about:  # it failed before its start
            return
        child = TrackedRun(
            run.config,
            run.folder,
            about,
            self.tracked.home,
            uri=self.uri,
            name=f"{self.tracked.folder.name}/{run.folder.name}",
            parent=self.tracked.run_id,
            log=self.log,
            registers=False,
        )
        if not child.is_delivered(run.status):
            child.deliver(run.status, run.outcome)

    def _mark(self, status: str) -> None:
        self.tracked.interrupt(status)
