"""The one writer to MLflow of a sweep: a run for the whole of it, and a child for each run of
a trial.

All that it tells is in the sweep's folder and its study, so that whatever MLflow misses is
delivered when the sweep is continued.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from raymi.tracking import store
from raymi.tracking.delivery import FAIL_SECONDS, Delivery
from raymi.tracking.tracked_run import TrackedRun
from raymi.tracking.tracked_sweep import TrackedSweep
from raymi.tuning.events import TrialEvent
from raymi.tuning.results_table import SweepResult, trial_rows
from raymi.tuning.study import Study, Trial
from raymi.tuning.sweep_folder import Sweep, TrialRun

_ENDED = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_STATUS = {**_ENDED, "paused": "KILLED"}


class SweepTracker(Delivery):
    """Follows a sweep and the runs of its trials, in a thread of the driver.

    Args:
        study: read here, and again when it is closed.
        home: folder of the local store where no server is named.
        tell: shown a line when the store stops answering, and when it answers again.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: Study,
        home: Path,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tracked = TrackedSweep(sweep, home, tell=tell)
        super().__init__(self.tracked.uri, "sweep", tell)
        self._sweep, self._study = sweep, study
        self._trials = {trial.number: trial for trial in study}
        self._news: SimpleQueue[TrialEvent] = SimpleQueue()
        self._found = SweepResult()
        self._settled = threading.Event()
        self._settled.set()
        self._quiet: dict[TrialRun, str] = {}
        """Runs that have ended while others of their trial go on, or are paused, and how."""
        self._due: dict[TrialRun, TrackedRun] = {}
        """Runs of which there may be more to deliver."""
        self._looked_at_all_when: str | None = None

    @property
    def run_id(self) -> str | None:
        """The run of the whole sweep in MLflow; None until it was found or made."""
        return self.tracked.run_id

    def on_trial_event(self, event: TrialEvent) -> None:
        """Takes what happened to a run, from any thread, and returns at once."""
        if event.kind != "measured":  # its journal says so, too
            self._news.put(event)

    def settle(self, timeout: float) -> bool:
        """Waits until all that has happened by now is delivered; whether it is.

        Args: timeout in seconds.
        """
        self._settled.clear()
        self._wake.set()
        return self._settled.wait(timeout)

    def conclude(self, status: str, timeout: float, found: SweepResult) -> bool:
        """Delivers what is left and what the sweep found, then sets the status in MLflow.

        The study must not be in use meanwhile.

        Args: status, FINISHED, KILLED or FAILED; timeout in seconds; found, by now.
        Returns: whether everything was delivered; what was not stays on disk.
        """
        self._found = found
        return self.close(status, timeout, FAIL_SECONDS)

    def _connect(self) -> None:
        before = self.run_id
        self.tracked.connect()
        if before is not None and self.run_id != before:  # somebody deleted it: it is made anew
            due, self._due = self._due, {}
            for run in due:
                self._follow(run)
            self._looked_at_all_when = None

    def _mark(self, status: str) -> None:
        self.tracked.interrupt(status)
        for run, tracked in list(self._due.items()):
            if self._trials[run.number].state == "running":
                tracked.interrupt(status)

    def _deliver(self, closing: str | None) -> None:
        try:
            self._send_news(closing)
        except Exception:
            self.tracked.doubt()
            raise

    def _send_news(self, closing: str | None) -> None:
        awaited = not self._settled.is_set()  # before a look at the news
        self._take_news()
        if closing is not None:
            self._trials = {trial.number: trial for trial in self._study}
        stage = closing or "RUNNING"
        if self._looked_at_all_when != stage:
            self._look_at_all(closing)
            self._looked_at_all_when = stage
        self.tracked.send_progress(self._trials.values())
        failed = self._send_all(closing)
        if closing is not None:
            rows = trial_rows(self._sweep, self._trials.values(), self._found.finalists)
            self.tracked.conclude(closing, rows, self._study.importance(), self._found)
        if failed is not None:
            raise failed
        if closing is None and awaited:
            self._settled.set()

    def _send_all(self, closing: str | None) -> Exception | None:
        """Delivers what there is of each run that is due: one that is refused holds up no other,
        nor the sweep's own; the first error.

        Raises: whatever MLflow raises where the store does not answer at all.
        """
        failed: Exception | None = None
        for run in list(self._due):
            try:
                if self._send(run, self._trials[run.number], closing):
                    del self._due[run]
            except Exception as error:
                self.tracked.check_store()
                failed = failed or error
        return failed

    def _take_news(self) -> None:
        while not self._news.empty():
            news = self._news.get()
            self._trials[news.trial.number] = news.trial
            self._quiet.pop(news.run, None)
            if news.kind != "began":
                self._quiet[news.run] = news.kind
            self._follow(news.run)

    def _look_at_all(self, closing: str | None) -> None:
        """Also at trials that ended in an earlier process, and at the end at those that it left."""
        for trial in self._trials.values():
            for run in self._sweep.runs_of(trial.number):
                there = self._sweep.folder_of(run).path.is_dir()
                left = closing is not None and self._sweep.folder_of(run).tracking.is_file()
                if left or (trial.state != "running" and (there or len(self._sweep.seeds) == 1)):
                    self._follow(run)

    def _follow(self, run: TrialRun) -> None:
        if run not in self._due:
            self._due[run] = self.tracked.child(run, self._trials[run.number])

    def _send(self, run: TrialRun, trial: Trial, closing: str | None) -> bool:
        """Delivers what a run has; whether that is all."""
        tracked = self._due[run]
        state = self._quiet.get(run, "running") if trial.state == "running" else trial.state
        status = _STATUS.get(state, "KILLED" if closing else None)
        if status is None:
            tracked.deliver(None)
            return False
        if not tracked.is_delivered(status):
            tags: dict[str, str] = {}
            if state in _ENDED:
                tags["raymi.state"] = state
            if trial.reason is not None:
                tags["raymi.reason"] = store.as_tag(trial.reason)
            tracked.deliver(status, tags)
        return True
