"""A sweep on Ray Tune: trials begin where there is room, and are stopped where others are ahead.

What is drawn and who goes on is decided by the sweep's study, which survives this process; Ray Tune
places, watches and restarts trials. A trial trains inside its own process.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray.tune
import torch
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymi.sweeps.study import Study, Trial
from raymi.sweeps.sweep import Measured, Sweep
from raymi.sweeps.trial import run_trial

_HOW, _REASON = "ended_how", "ended_reason"
"""Keys of a trial's last result: how it ended, and why it failed."""


class News(NamedTuple):
    """Something that happened to a trial: "began", "measured", "finished", "stopped", "paused" or
    "failed", with what it reached by then, or why it failed."""

    kind: str
    trial: Trial
    measured: Measured | None = None


Tell = Callable[[News], None]


def run_sweep(
    sweep: Sweep, study: Study, *, cpus: int, gpus: int, concurrent: int | None, tell: Tell
) -> None:
    """Brings all trials of a sweep to their end; call it within a `ray_session`.

    Args: cpus, gpus of a trial; concurrent, trials at the same time, None: as many as fit; tell,
        takes news, in Ray Tune's thread.
    """
    searcher = _Searcher(sweep, study, tell)
    left = sweep.num_trials - len(study) + len(searcher.unfinished)
    if left <= 0:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints whatever it is told
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    trainable = ray.tune.with_parameters(_trial, folder=str(sweep.path), import_path=os.getcwd())
    ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher),
            num_samples=left,
            max_concurrent_trials=concurrent,
            metric="robust",
            mode="max",
        ),
        run_config=ray.tune.RunConfig(
            name="ray",
            storage_path=str(sweep.path),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=2),
        ),
    ).fit()


def _trial(config: dict[str, Any], folder: str, import_path: str) -> dict[str, Any]:
    """What runs in a trial's process."""
    if import_path not in sys.path:
        sys.path.insert(0, import_path)  # the user's own models
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ended = run_trial(
        Sweep(Path(folder)),
        config["number"],
        config["values"],
        device,
        lambda measured: ray.tune.report(measured._asdict()),
    )
    return {_HOW: ended.how, _REASON: ended.reason}


class _Searcher(Searcher):
    """Draws from the study; first come the trials that an earlier process left."""

    def __init__(self, sweep: Sweep, study: Study, tell: Tell) -> None:
        super().__init__(metric="robust", mode="max")
        self.sweep, self.study, self.tell = sweep, study, tell
        self.unfinished = deque(study.unfinished())
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._lock:
            if self.sweep.stop_file.exists():
                return Searcher.FINISHED
            if self.unfinished:
                trial = self.unfinished.popleft()
            elif len(self.study) < self.sweep.num_trials:
                trial = self.study.ask()
            else:
                return Searcher.FINISHED
            self._numbers[trial_id] = trial.number
        self.tell(News("began", trial))
        return {"number": trial.number, "values": trial.values}

    def reached(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Notes what a trial reached; whether it should be stopped."""
        number = self._numbers[trial_id]
        if "robust" not in result:
            return False
        measured = Measured(result["epoch"], result["clean"], result["robust"])
        self.tell(News("measured", self.study[number], measured))
        if len(self.sweep.definition.tune.objectives) > 1:
            return False
        if not self.study.report(number, measured.epoch, measured.robust):
            return False
        self.study.stop(number)
        self.tell(News("stopped", self.study[number], measured))
        return True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self._numbers[trial_id]
        if self.study[number].state != "running":
            return  # it was stopped
        how = (result or {}).get(_HOW)
        if how is None and not error:
            return
        if how == "paused":
            self.tell(News("paused", self.study[number]))
            return
        measured = self.sweep.measured(number)
        if how == "finished" and measured:
            last = measured[-1]
            names = self.sweep.definition.tune.objectives
            self.study.finish(number, [getattr(last, name) for name in names])
            self.tell(News("finished", self.study[number], last))
            return
        reason = (result or {}).get(_REASON) if how else "its process died again and again"
        self.study.fail(number, reason or "it was never validated")
        self.tell(News("failed", self.study[number]))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler sees results first."""

    def save(self, checkpoint_path: str) -> None:
        """The study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune keeps searchers in a file of its own, which nobody reads."""
        return {}


class _Scheduler(FIFOScheduler):
    """Stops trials where the study says so."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        behind = self._searcher.reached(trial.trial_id, result)
        return TrialScheduler.STOP if behind else TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}
