"""The one writer to MLflow of a sweep: a run for the whole of it, and a child for each trial.

All that it tells is in the sweep's folder and its study, so that whatever MLflow misses is
delivered when the sweep is continued.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from raymi.sweeps.study import Study, Trial
from raymi.sweeps.sweep import Measured, Sweep
from raymi.sweeps.table import trial_rows
from raymi.tracking import store
from raymi.tracking.delivery import Delivery
from raymi.tracking.tracked_run import TrackedRun
from raymi.tracking.tracked_sweep import TrackedSweep

_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


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
        self._news: SimpleQueue[tuple[str, Trial]] = SimpleQueue()
        self._winner: int | None = None
        self._paused: set[int] = set()
        self._due: dict[int, TrackedRun] = {}
        """Runs of trials of which there may be more to deliver."""
        self._looked_at_all_when: str | None = None

    @property
    def run_id(self) -> str | None:
        """The run of the whole sweep in MLflow; None until it was found or made."""
        return self.tracked.run_id

    def news(self, kind: str, trial: Trial, measured: Measured | None = None) -> None:
        """Takes what happened to a trial, from any thread, and returns at once.

        Args: kind, "began", "measured", "finished", "stopped", "paused" or "failed"; trial, as it
            is since then; measured, which its run's journal says too.
        """
        if kind != "measured":
            self._news.put((kind, trial))

    def close(self, status: str, timeout: float, winner: int | None = None) -> bool:
        """Delivers what is left and what the sweep found, then sets the status in MLflow.

        The study must not be in use meanwhile.

        Args: status, FINISHED, KILLED or FAILED; timeout in seconds; winner, number of the trial
            that was chosen, whose run may have been evaluated; None: none was.
        Returns: whether everything was delivered; what was not stays on disk.
        """
        self._winner = winner
        return super().close(status, timeout)

    def _connect(self) -> None:
        self.tracked.connect()

    def _deliver(self, closing: str | None) -> None:
        self._take_news()
        if closing is not None:
            self._trials = {trial.number: trial for trial in self._study}
        stage = closing or "RUNNING"
        if self._looked_at_all_when != stage:
            self._look_at_all(closing)
            self._looked_at_all_when = stage
        self.tracked.send_progress(self._trials.values())
        for number in list(self._due):
            self._due[number] = self._due.pop(number)  # what fails does not hold up the others
            if self._send(self._trials[number], closing):
                del self._due[number]
        if closing is not None:
            rows = trial_rows(self._sweep, self._trials.values())
            winner = None if self._winner is None else self._trials[self._winner]
            self.tracked.conclude(closing, rows, self._study.importance(), winner)

    def _take_news(self) -> None:
        while not self._news.empty():
            kind, trial = self._news.get()
            self._trials[trial.number] = trial
            self._paused.discard(trial.number)
            if kind == "paused":
                self._paused.add(trial.number)
            if trial.number not in self._due:
                self._due[trial.number] = self.tracked.child(trial)

    def _look_at_all(self, closing: str | None) -> None:
        """Also at trials that ended in an earlier process, and at the end at those that it left."""
        for number, trial in self._trials.items():
            ended = trial.state != "running"
            left = closing is not None and self._sweep.folder_of(number).tracking.is_file()
            if (ended or left) and number not in self._due:
                self._due[number] = self.tracked.child(trial)

    def _send(self, trial: Trial, closing: str | None) -> bool:
        """Delivers what a trial's run has; whether that is all."""
        run = self._due[trial.number]
        if trial.state == "running":
            status = "KILLED" if closing or trial.number in self._paused else None
        else:
            status = _STATUS[trial.state]
        if status is None:
            run.deliver(None)
            return False
        if not run.is_delivered(status):
            tags: dict[str, str] = {}
            if trial.state != "running":
                tags["raymi.state"] = trial.state
            if trial.reason is not None:
                tags["raymi.reason"] = store.as_tag(trial.reason)
            run.deliver(status, tags)
        return True
