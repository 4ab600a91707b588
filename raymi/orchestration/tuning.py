"""A sweep on Ray Tune: runs begin where there is room, and are stopped where others are ahead.

What is drawn and who goes on is decided by the sweep's study, which survives this process; Ray Tune
places, watches and restarts runs. A run of one worker trains inside its own process, one of several
is the driver of its own Ray Train.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.tune
import torch
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymi.config import Config
from raymi.engine.run_folder import RunFolder
from raymi.errors import StorageError
from raymi.orchestration.failures import innermost, left_failure, remove_traces
from raymi.orchestration.trainer import fit
from raymi.sweeps.news import Kind, News, Watcher
from raymi.sweeps.study import Study
from raymi.sweeps.sweep import Measured, Run, Sweep, reached
from raymi.sweeps.table import trial_rows
from raymi.sweeps.trial import Ended, Train, in_this_process, run_trial

_HOW, _REASON = "ended_how", "ended_reason"
"""Keys of a run's last result: how it ended, and why it failed."""
_METRIC = "val/robust_acc"
_MAX_FAILURES = 2  # of a run's process, or of its node


def run_sweep(
    sweep: Sweep, study: Study, *, use_gpu: bool, concurrent: int, watch: Watcher
) -> None:
    """Brings all trials of a sweep to their end; call it within a `ray_session`.

    Args: use_gpu, one GPU for each worker; concurrent, runs at the same time; watch, told in Ray
        Tune's thread.
    Raises: StorageError where a run cannot write.
    """
    searcher = _Searcher(sweep, study, watch)
    if not searcher.most:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints whatever it is told
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    trainable = ray.tune.with_parameters(
        _trial, folder=str(sweep.path), import_path=os.getcwd(), use_gpu=use_gpu
    )
    resources = _resources(sweep.config_of({}), use_gpu)
    ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher),
            num_samples=searcher.most,
            max_concurrent_trials=concurrent,
            metric=_METRIC,
            mode="max",
        ),
        run_config=ray.tune.RunConfig(
            name="ray",
            storage_path=str(sweep.path),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    ).fit()
    if searcher.problem is not None:
        raise StorageError(searcher.problem)


def _resources(config: Config, use_gpu: bool) -> dict[str, float]:
    """Of a run's process; where it is the driver of several workers it takes no place of theirs."""
    scaling = config.scaling
    if scaling.most_workers > 1:
        return {"node:__internal_head__": 0.001}
    return {"CPU": scaling.cpus_per_worker, **({"GPU": 1} if use_gpu else {})}


def _trial(
    config: dict[str, Any], folder: str, import_path: str, use_gpu: bool
) -> dict[str, str | None]:
    """What runs in a run's process."""
    if import_path not in sys.path:
        sys.path.insert(0, import_path)  # the user's own models
    sweep, run = Sweep(Path(folder)), Run(config["number"], config["seed"])
    if sweep.config_of({}).scaling.most_workers > 1:
        train_run = _on_workers(sweep.stop_file, import_path, use_gpu)
    else:
        device = torch.device("cuda" if use_gpu else "cpu")
        train_run = in_this_process(device, sweep.stop_file, lambda m: ray.tune.report(dict(m)))
    ended = run_trial(sweep, run, config["values"], train_run)
    return {_HOW: ended.how, _REASON: ended.reason}


def _on_workers(stop_file: Path, import_path: str, use_gpu: bool) -> Train:
    """Trains on several workers, as their driver."""

    def train_run(config: Config, folder: RunFolder, until: str) -> Ended:
        remove_traces(folder)
        try:
            result = fit(
                config,
                folder,
                use_gpu=use_gpu,
                import_path=import_path,
                stop_file=stop_file,
                test=False,
                until=until,
                callbacks=[TuneReportCallback()],
            )
        except Exception as error:
            return Ended("failed", left_failure(folder) or innermost(error, folder))
        if result is None or "problem" in result:
            return Ended("blocked", (result or {}).get("problem"))
        return Ended("finished" if result["finished"] else "paused")

    return train_run


class _Searcher(Searcher):
    """Says which run comes next: first those that an earlier process left, then what the study
    draws.

    `problem`: why no run can be written any more; None where all is well.
    """

    def __init__(self, sweep: Sweep, study: Study, watch: Watcher) -> None:
        super().__init__(metric=_METRIC, mode="max")
        self.sweep, self.study, self.watch = sweep, study, watch
        self.problem: str | None = None
        self._runs: dict[str, Run] = {}  # by Ray's names
        self._reached: dict[Run, list[Measured]] = {}
        self._lock = threading.RLock()
        self._next = deque(self._left())

    @property
    def most(self) -> int:
        """How many runs there may be yet."""
        fresh = self.sweep.num_trials - len(self.study)
        return len(self._next) + fresh * len(self.sweep.seeds)

    def _left(self) -> Iterator[Run]:
        for trial in self.study.unfinished():
            runs = [run for run in self.sweep.runs_of(trial.number) if not self._is_done(run)]
            yield from runs
            if not runs:
                self._conclude(trial.number)

    def _is_done(self, run: Run) -> bool:
        return self.sweep.is_finished(run)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._lock:
            run = self._take()
            if run is None:
                return Searcher.FINISHED
            self._runs[trial_id] = run
            self._reached[run] = self.sweep.measured(run)
            trial = self.study[run.number]
        self.watch.news(News("began", run, trial))
        return {"number": run.number, "seed": run.seed, "values": trial.values}

    def _take(self) -> Run | None:
        """The run that comes next; None: there is none, or the sweep is to end."""
        while not (self.problem or self.sweep.stop_file.exists()):
            if not self._next:
                if len(self.study) >= self.sweep.num_trials:
                    return None
                self._next.extend(self.sweep.runs_of(self.study.ask().number))
            run = self._next.popleft()
            if self.study[run.number].state == "running":  # no other seed of it has failed
                return run
        return None

    def reports(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Notes what a run has reached; whether it should be stopped."""
        run = self._runs[trial_id]
        val = {key.removeprefix("val/"): result[key] for key in result if key.startswith("val/")}
        if result.get("phase") != "classifier" or not val:
            return False
        with self._lock:
            now = Measured.of_epoch(result["epoch"], val)
            self._reached[run] = reached([*self._reached[run], now])
            now = self._reached[run][-1]
            trial = self.study[run.number]
            behind = trial.state != "running"  # another seed of it has failed
            if not behind and self._is_behind(run, now):
                behind = True
                self.study.stop(run.number)
        self.watch.news(News("measured", run, trial, now))
        if behind:
            self.watch.news(News("stopped", run, self.study[run.number], now))
        return behind

    def _is_behind(self, run: Run, now: Measured) -> bool:
        """Whether others are ahead of a trial of one seed that is not at its end anyhow."""
        if len(self.sweep.seeds) > 1:
            return False
        behind = self.study.report(run.number, now.epoch, now.robust)
        epochs = self.sweep.config_of(self.study[run.number].values).optim.epochs
        return behind and now.epoch < epochs

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        run, ended = self._runs[trial_id], _ended(result or {}, error)
        with self._lock:
            if ended is None or self.study[run.number].state != "running":
                return  # it was stopped
            kind = self._end(run, ended)
            trial = self.study[run.number]
            last = self._reached[run][-1] if self._reached[run] else None
        self.watch.news(News(kind, run, trial, last))

    def _end(self, run: Run, ended: Ended) -> Kind:
        """Notes how a run has ended."""
        if ended.how == "blocked":
            self.problem = ended.reason
            with suppress(OSError):
                self.sweep.stop_file.touch()
            return "paused"
        if ended.how == "paused":
            return "paused"
        if ended.how == "finished" and not self._reached[run]:
            ended = Ended("failed", "it was never validated")
        if ended.how == "failed":
            seed = f"seed {run.seed}: " if len(self.sweep.seeds) > 1 else ""
            self.study.fail(run.number, f"{seed}{ended.reason}")
            return "failed"
        self._conclude(run.number)
        return "finished"

    def _conclude(self, number: int) -> None:
        """Ends a trial once all of its runs have ended."""
        if all(map(self._is_done, self.sweep.runs_of(number))):
            (row,) = trial_rows(self.sweep, [self.study[number]])
            names = self.sweep.definition.tune.objectives
            self.study.finish(number, [getattr(row, name) for name in names])

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler sees results first."""

    def save(self, checkpoint_path: str) -> None:
        """The study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune keeps searchers in a file of its own, which nobody reads."""
        return {}


def _ended(result: dict[str, Any], died: bool) -> Ended | None:
    """How a run says that it has ended; None: it was stopped before it could.

    Args: died, Ray Tune has given it up.
    """
    if died:
        return Ended("failed", "its process died again and again")
    return Ended(result[_HOW], result[_REASON]) if _HOW in result else None


class _Scheduler(FIFOScheduler):
    """Stops runs where the searcher says so."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        behind = self._searcher.reports(trial.trial_id, result)
        return TrialScheduler.STOP if behind else TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}
