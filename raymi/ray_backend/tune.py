"""Sweep on Ray Tune, which places, monitors and restarts the runs.

The sweep's study, which survives this process, draws values and stops slow learners. A
run with one worker trains in its own process; a run with several is the driver of its own Ray
Train.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.tune
import torch
from ray.tune.error import TuneError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymi.config import Config
from raymi.errors import StorageError, first_line
from raymi.evaluation.attack_task import StepFailed
from raymi.ray_backend.failures import (
    read_failure,
    remove_leftovers,
    root_cause,
    worker_loss_cause,
)
from raymi.ray_backend.internals import ENV_VARS_TO_PROPAGATE
from raymi.ray_backend.train import fit
from raymi.ray_backend.worker_process import add_import_path, worker_resources
from raymi.runs.run_folder import RunFolder
from raymi.tuning.events import EventKind, SweepCallback, TrialEvent
from raymi.tuning.run_trial import TrainFunction, TrialResult, in_this_process, run_trial
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun, best_so_far
from raymi.tuning.trial_queue import trial_queue_of

_STATUS, _REASON = "ended_how", "ended_reason"
"""Keys of a run's last result: its status, and the reason of a failure."""
_METRIC = "val/robust_acc"
_MAX_FAILURES = 2  # of a run's process, or of its node


def run_sweep(
    sweep: Sweep, study: Study, *, use_gpu: bool, concurrent: int, callback: SweepCallback
) -> None:
    """Trains all trials of a sweep to their end within a `ray_session`.

    Args:
        sweep: The sweep.
        study: Its study.
        use_gpu: Whether each worker has a GPU.
        concurrent: Number of concurrent runs.
        callback: Receives the events, in Ray Tune's thread.

    Raises:
        StorageError: A run cannot write.
        StepFailed: Ray Tune failed.
    """
    searcher = _Searcher(sweep, study, callback)
    if not searcher.queue.max_jobs:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output ignores verbose=0
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # raymi prints a line per failure
    withhold_aws_keys()
    trainable = ray.tune.with_parameters(
        _trial, folder=str(sweep.path), import_path=os.getcwd(), use_gpu=use_gpu
    )
    resources = _resources(sweep.config_of({}), use_gpu)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher),
            num_samples=searcher.queue.max_jobs,
            max_concurrent_trials=concurrent,
            metric=_METRIC,
            mode="max",
            # Saves the seconds of a process start in each generation. Without PBT, trials are
            # stopped early, and Ray cannot reuse the process of a stopped trial.
            reuse_actors=sweep.definition.tune.search == "pbt",
        ),
        run_config=ray.tune.RunConfig(
            name="ray",
            storage_path=str(sweep.path),
            verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:
        raise StepFailed(f"Ray Tune failed: {first_line(error)}") from None
    if searcher.problem is not None:
        raise StorageError(searcher.problem)


def withhold_aws_keys() -> None:
    """Keeps the user's AWS keys out of the runtime environment of trials.

    Ray Tune copies them there, and Ray writes a runtime environment to world-readable logs and
    shows it in its dashboard. Trials have the environment of their node.
    """
    keys = {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    ENV_VARS_TO_PROPAGATE.difference_update(keys)  # in place: Ray reads this set


def _resources(config: Config, use_gpu: bool) -> dict[str, float]:
    """Returns the resources of a run's process; the driver of several workers takes no slot."""
    scaling = config.scaling
    if scaling.most_workers > 1:
        return {"node:__internal_head__": 0.001}
    return worker_resources(scaling.cpus_per_worker, use_gpu)


def _trial(
    config: dict[str, Any], folder: str, import_path: str, use_gpu: bool
) -> dict[str, str | None]:
    """Trains a run in its process."""
    add_import_path(import_path)
    sweep, run = Sweep(Path(folder)), TrialRun(config["number"], config["seed"])
    if sweep.config_of({}).scaling.most_workers > 1:
        train_run = _on_workers(sweep.stop_file, import_path, use_gpu)
    else:
        device = torch.device("cuda" if use_gpu else "cpu")
        train_run = in_this_process(device, sweep.stop_file, lambda m: ray.tune.report(dict(m)))
    result = run_trial(sweep, run, config["values"], train_run, config["until_epoch"])
    return {_STATUS: result.status, _REASON: result.reason}


def _on_workers(stop_file: Path, import_path: str, use_gpu: bool) -> TrainFunction:
    """Returns a function that trains on several workers, as their driver."""

    def train_run(
        config: Config, folder: RunFolder, until: str, until_epoch: int | None
    ) -> TrialResult:
        assert until_epoch is None, "PBT has trials of one worker"
        remove_leftovers(folder)
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
            return TrialResult("failed", read_failure(folder) or root_cause(error, folder))
        result = result or {}
        if "problem" in result:
            return TrialResult("blocked", result["problem"])
        return TrialResult("finished" if result.get("finished") else "paused")

    return train_run


class _Searcher(Searcher):
    """Searcher that suggests the jobs of the trial queue and returns their results to it.

    Attributes:
        problem: Reason for which runs cannot be written; None without one.
    """

    def __init__(self, sweep: Sweep, study: Study, callback: SweepCallback) -> None:
        super().__init__(metric=_METRIC, mode="max")
        self.sweep, self.study, self.callback = sweep, study, callback
        self.problem: str | None = None
        self.queue = trial_queue_of(sweep, study)
        self._runs: dict[str, TrialRun] = {}  # by Ray's trial IDs
        self._measurements: dict[TrialRun, list[Measurement]] = {}
        self._several_workers = sweep.config_of({}).scaling.most_workers > 1
        self._stopping: set[TrialRun] = set()
        self._losses: dict[str, str] = {}  # causes of lost processes, by Ray's trial IDs
        self._lock = threading.Lock()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._lock:
            if self.problem or self.sweep.stop_file.exists() or self.queue.exhausted:
                return Searcher.FINISHED
            try:
                job = self.queue.next()
            except StorageError as error:
                self._block(str(error))
                return Searcher.FINISHED
            if job is None:
                return Searcher.FINISHED if self.queue.exhausted else None
            self._runs[trial_id] = job.run
            self._measurements[job.run] = self.sweep.measurements(job.run)
            trial = self.study[job.run.number]
        self.callback.on_trial_event(TrialEvent("began", job.run, trial))
        run, values, until_epoch = job
        return {**run._asdict(), "values": values, "until_epoch": until_epoch}

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Records a run's metrics; returns whether Ray Tune should stop it.

        A run with several workers is asked to stop itself: Ray does not always free the slots of
        the workers of a killed driver.
        """
        run = self._runs[trial_id]
        if run in self._stopping:
            return False
        val = {key.removeprefix("val/"): result[key] for key in result if key.startswith("val/")}
        if result.get("phase") != "classifier" or not val:
            return False
        with self._lock:
            latest = Measurement.of_epoch(result["epoch"], val)
            self._measurements[run] = best_so_far([*self._measurements[run], latest])
            best = self._measurements[run][-1]
            try:
                behind = self.queue.report(run, best)
            except StorageError as error:
                self._block(str(error))
                behind = False
            trial = self.study[run.number]
        self.callback.on_trial_event(TrialEvent("measured", run, trial, best))
        if behind:  # others are ahead, or another seed has failed
            kind: EventKind = "failed" if trial.state == "failed" else "stopped"
            self.callback.on_trial_event(TrialEvent(kind, run, trial, best))
        if behind and self._several_workers:
            self._stopping.add(run)
            with suppress(OSError):
                self.sweep.folder_of(run).stop_file.touch()
            return False
        return behind

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        cause = self._losses.get(trial_id) if error else None
        run, outcome = self._runs[trial_id], _trial_result(result or {}, error, cause)
        with self._lock:
            if outcome is None or self.study[run.number].state != "running":
                return  # it was stopped
            kind = self._complete(run, outcome)
            trial = self.study[run.number]
            best = self._measurements[run][-1] if self._measurements[run] else None
        self.callback.on_trial_event(TrialEvent(kind, run, trial, best))

    def on_process_lost(self, trial_id: str, error: str) -> None:
        """Records the cause of a lost process, which Ray Tune does not pass to a searcher."""
        if cause := worker_loss_cause(error):
            self._losses[trial_id] = cause

    def _complete(self, run: TrialRun, outcome: TrialResult) -> EventKind:
        if outcome.status == "paused":
            return "paused"
        if outcome.status == "blocked":
            self._block(outcome.reason)
            return "paused"
        try:
            return self.queue.complete(run, outcome)
        except StorageError as error:
            self._block(str(error))
            return "paused"

    def _block(self, problem: str | None) -> None:
        """Stops the sweep: running trials write a checkpoint if they can, and no other starts."""
        self.problem = problem
        with suppress(OSError):
            self.sweep.stop_file.touch()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: the scheduler passes results to `report`."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Returns no state: Ray Tune pickles searchers to a file that raymi does not read."""
        return {}


def _trial_result(
    result: dict[str, Any], lost: bool, cause: str | None = None
) -> TrialResult | None:
    """Returns the result of a run; None: it was stopped before it returned one.

    Args:
        result: The run's last report.
        lost: Whether Ray Tune gave up restarting its process.
        cause: Cause of the last loss; None: unknown.
    """
    if lost:
        last = f"; the last time: {cause}" if cause else ""
        return TrialResult("failed", f"its process was lost {_MAX_FAILURES + 1} times{last}")
    return TrialResult(result[_STATUS], result[_REASON]) if _STATUS in result else None


class _Scheduler(FIFOScheduler):
    """Scheduler that asks the searcher which runs to stop, and passes process errors on to it."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        behind = self._searcher.report(trial.trial_id, result)
        return TrialScheduler.STOP if behind else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        with suppress(OSError, TypeError):  # the folder is gone, or there is no error file
            text = Path(trial.error_file).read_text(errors="replace")
            self._searcher.on_process_lost(trial.trial_id, text)
        super().on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, Any]:
        return {}
