"""Delivery of a sweep to MLflow: a run of the sweep, and a child for each run of a trial.

All data are from the sweep's folder and its study: undelivered ones are delivered when the sweep is
resumed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from raymi.formatting import shortened
from raymi.tracking.delivery import FAIL_SECONDS, Delivery
from raymi.tracking.tracked_run import TrackedRun
from raymi.tracking.tracked_sweep import TrackedSweep
from raymi.tuning.events import TrialEvent
from raymi.tuning.results_table import SweepResult, trial_rows
from raymi.tuning.study import Study, Trial
from raymi.tuning.sweep_folder import Sweep, TrialRun

_ENDED = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_STATUS = {**_ENDED, "paused": "KILLED"}

LONGEST_REASON = 1000
"""Characters of a failed trial's reason in the description of its run."""


class SweepTracker(Delivery):
    """Delivery of a sweep and the runs of its trials, in a thread of the driver.

    Args:
        sweep: of the trials.
        study: read here and when the tracker is closed.
        home: folder of the local store if no server is set.
        log: callback for a line when the store stops and resumes answering.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: Study,
        home: Path,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tracked = TrackedSweep(sweep, home, log)
        super().__init__(self.tracked.uri, "sweep", log)
        self._sweep, self._study = sweep, study
        self._trials = {trial.number: trial for trial in study}
        self._events: SimpleQueue[TrialEvent] = SimpleQueue()
        self._result = SweepResult()
        self._flushed = threading.Event()
        self._flushed.set()
        self._ended_as: dict[TrialRun, str] = {}
        """State of runs that have ended or are paused while their trial is running."""
        self._pending: dict[TrialRun, TrackedRun] = {}
        """Runs with possibly undelivered data."""
        self._searched_at: str | None = None
        """Stage at which all trials were last searched for undelivered runs."""

    @property
    def run_id(self) -> str | None:
        """Id of the sweep's run in MLflow; None until it was found or created."""
        return self.tracked.run_id

    def on_trial_event(self, event: TrialEvent) -> None:
        """Queues an event of a run, from any thread; returns immediately."""
        if event.kind != "measured":  # also in the run's journal
            self._events.put(event)

    def flush(self, timeout: float) -> bool:
        """Waits until all events so far are delivered; returns whether they are.

        Args:
            timeout: in seconds.
        """
        self._flushed.clear()
        self._wake.set()
        return self._flushed.wait(timeout)

    def conclude(self, status: str, timeout: float, result: SweepResult) -> bool:
        """Delivers remaining data and the result of the sweep, then sets the status in MLflow.

        The study must not be in use meanwhile.

        Args:
            status: FINISHED, KILLED or FAILED.
            timeout: in seconds.
            result: of the sweep so far.

        Returns:
            Whether everything was delivered; undelivered data stay on disk.
        """
        self._result = result
        return self.close(status, timeout, FAIL_SECONDS)

    def _connect(self) -> None:
        before = self.run_id
        self.tracked.connect()
        if before is not None and self.run_id != before:  # deleted in MLflow, and created again
            pending, self._pending = self._pending, {}
            for run in pending:
                self._track(run)
            self._searched_at = None

    def _mark(self, status: str) -> None:
        self.tracked.interrupt(status)
        for run, tracked in list(self._pending.items()):
            if self._trials[run.number].state == "running":
                tracked.interrupt(status)

    def _deliver(self, closing: str | None) -> None:
        self._connect()
        try:
            self._deliver_all(closing)
        except Exception:
            self.tracked.disconnect()
            raise

    def _deliver_all(self, closing: str | None) -> None:
        flushing = not self._flushed.is_set()  # before the events are read
        self._read_events()
        if closing is not None:
            self._trials = {trial.number: trial for trial in self._study}
        stage = closing or "RUNNING"
        if self._searched_at != stage:
            self._search_undelivered(closing)
            self._searched_at = stage
        self.tracked.log_progress(self._trials.values())
        error = self._deliver_runs(closing)
        if closing is not None:
            rows = trial_rows(self._sweep, self._trials.values(), self._result.finalists)
            self.tracked.conclude(closing, rows, self._study.importance(), self._result)
        if error is not None:
            raise error
        if closing is None and flushing:
            self._flushed.set()

    def _deliver_runs(self, closing: str | None) -> Exception | None:
        """Delivers pending runs; an error of one does not delay the others.

        Returns:
            The first error.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        first: Exception | None = None
        for run in list(self._pending):
            try:
                if self._deliver_run(run, self._trials[run.number], closing):
                    del self._pending[run]
            except Exception as error:
                self.tracked.check_store()
                first = first or error
        return first

    def _read_events(self) -> None:
        while not self._events.empty():
            event = self._events.get()
            self._trials[event.trial.number] = event.trial
            self._ended_as.pop(event.run, None)
            if event.kind != "began":
                self._ended_as[event.run] = event.kind
            self._track(event.run)

    def _search_undelivered(self, closing: str | None) -> None:
        """Adds runs that ended in an earlier process, and at the end those that it interrupted."""
        for trial in self._trials.values():
            for run in self._sweep.runs_of(trial.number):
                folder = self._sweep.folder_of(run)
                interrupted = closing is not None and folder.tracking.is_file()
                exists = folder.path.is_dir() or len(self._sweep.seeds) == 1
                if interrupted or (trial.state != "running" and exists):
                    self._track(run)

    def _track(self, run: TrialRun) -> None:
        if run not in self._pending:
            self._pending[run] = self.tracked.trial_run(run, self._trials[run.number])

    def _deliver_run(self, run: TrialRun, trial: Trial, closing: str | None) -> bool:
        """Delivers data of a run; returns whether the run has ended."""
        tracked = self._pending[run]
        state = self._ended_as.get(run, "running") if trial.state == "running" else trial.state
        status = _STATUS.get(state, "KILLED" if closing else None)
        if status is None:
            tracked.deliver(None)
            return False
        if not tracked.is_delivered(status):
            reason = "" if trial.reason is None else f": {shortened(trial.reason, LONGEST_REASON)}"
            tracked.deliver(status, f"Trial {trial.number} {state}{reason}.")
        return True
