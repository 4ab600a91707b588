"""A sweep on Ray Tune: runs begin where there is room, and are stopped where others are ahead.

What is drawn and who goes on is decided by the sweep's study, which survives this process; Ray Tune
places, watches and restarts runs. A run of one worker trains inside its own process, one of several
is the driver of its own Ray Train.
"""

from __future__ import annotations

import logging
import os
import sys
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
from raymi.ray_backend.failures import innermost, left_failure, loss_of_worker, remove_traces
from raymi.ray_backend.internals import ENV_VARS_TO_PROPAGATE
from raymi.ray_backend.train import fit
from raymi.runs.run_folder import RunFolder
from raymi.tuning.events import Kind, News, SweepCallback
from raymi.tuning.run_trial import Ended, Train, in_this_process, run_trial
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun, reached
from raymi.tuning.trial_queue import trial_queue_of

_HOW, _REASON = "ended_how", "ended_reason"
"""Keys of a run's last result: how it ended, and why it failed."""
_METRIC = "val/robust_acc"
_MAX_FAILURES = 2  # of a run's process, or of its node


def run_sweep(
    sweep: Sweep, study: Study, *, use_gpu: bool, concurrent: int, watch: SweepCallback
) -> None:
    """Brings all trials of a sweep to their end; call it within a `ray_session`.

    Args: use_gpu, one GPU for each worker; concurrent, runs at the same time; watch, told in Ray
        Tune's thread.
    Raises: StorageError where a run cannot write.
    """
    searcher = _Searcher(sweep, study, watch)
    if not searcher.queue.most:
        return
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints whatever it is told
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # failures of trials are told in a line
    hand_on_no_keys()
    trainable = ray.tune.with_parameters(
        _trial, folder=str(sweep.path), import_path=os.getcwd(), use_gpu=use_gpu
    )
    resources = _resources(sweep.config_of({}), use_gpu)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(searcher),
            num_samples=searcher.queue.most,
            max_concurrent_trials=concurrent,
            metric=_METRIC,
            mode="max",
            # A process starts in seconds, of which a generation may take few; but Ray cannot use
            # that of a trial which it has stopped again.
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
        raise StepFailed(f"Ray Tune ended: {first_line(error)}") from None
    if searcher.problem is not None:
        raise StorageError(searcher.problem)


def hand_on_no_keys() -> None:
    """Keeps the user's AWS keys out of the runtime environment of trials, into which Ray Tune puts
    them: Ray writes it into logs that everyone may read, and shows it in its dashboard. Trials
    have the environment of their node."""
    keys = {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    ENV_VARS_TO_PROPAGATE.difference_update(keys)  # in place: Ray reads this set


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
    sweep, run = Sweep(Path(folder)), TrialRun(config["number"], config["seed"])
    if sweep.config_of({}).scaling.most_workers > 1:
        train_run = _on_workers(sweep.stop_file, import_path, use_gpu)
    else:
        device = torch.device("cuda" if use_gpu else "cpu")
        train_run = in_this_process(device, sweep.stop_file, lambda m: ray.tune.report(dict(m)))
    ended = run_trial(sweep, run, config["values"], train_run, config["until_epoch"])
    return {_HOW: ended.how, _REASON: ended.reason}


def _on_workers(stop_file: Path, import_path: str, use_gpu: bool) -> Train:
    """Trains on several workers, as their driver."""

    def train_run(config: Config, folder: RunFolder, until: str, until_epoch: int | None) -> Ended:
        assert until_epoch is None, "a population has trials of one worker"
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
        result = result or {}
        if "problem" in result:
            return Ended("blocked", result["problem"])
        return Ended("finished" if result.get("finished") else "paused")

    return train_run


class _Searcher(Searcher):
    """Hands out what is on the agenda, and tells it, and those who watch, what comes of it.

    `problem`: why no run can be written any more; None where all is well.
    """

    def __init__(self, sweep: Sweep, study: Study, watch: SweepCallback) -> None:
        super().__init__(metric=_METRIC, mode="max")
        self.sweep, self.study, self.watch = sweep, study, watch
        self.problem: str | None = None
        self.queue = trial_queue_of(sweep, study)
        self._runs: dict[str, TrialRun] = {}  # by Ray's names
        self._reached: dict[TrialRun, list[Measurement]] = {}
        self._several_workers = sweep.config_of({}).scaling.most_workers > 1
        self._asked_to_end: set[TrialRun] = set()
        self._deaths: dict[str, str] = {}  # causes of the ends of processes, by Ray's names
        self._lock = threading.Lock()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._lock:
            if self.problem or self.sweep.stop_file.exists() or self.queue.over:
                return Searcher.FINISHED
            try:
                job = self.queue.next()
            except StorageError as error:
                self._block(str(error))
                return Searcher.FINISHED
            if job is None:
                return Searcher.FINISHED if self.queue.over else None
            self._runs[trial_id] = job.run
            self._reached[job.run] = self.sweep.measured(job.run)
            trial = self.study[job.run.number]
        self.watch.news(News("began", job.run, trial))
        run, values, until_epoch = job
        return {**run._asdict(), "values": values, "until_epoch": until_epoch}

    def reports(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Notes what a run has reached; whether Ray Tune should stop it.

        One of several workers is asked to end by itself: where its driver is killed, Ray does not
        always get back the places of its workers.
        """
        run = self._runs[trial_id]
        if run in self._asked_to_end:
            return False
        val = {key.removeprefix("val/"): result[key] for key in result if key.startswith("val/")}
        if result.get("phase") != "classifier" or not val:
            return False
        with self._lock:
            now = Measurement.of_epoch(result["epoch"], val)
            self._reached[run] = reached([*self._reached[run], now])
            now = self._reached[run][-1]
            try:
                behind = self.queue.measured(run, now)
            except StorageError as error:
                self._block(str(error))
                behind = False
            trial = self.study[run.number]
        self.watch.news(News("measured", run, trial, now))
        if behind:  # others are ahead, or another seed has failed
            kind: Kind = "failed" if trial.state == "failed" else "stopped"
            self.watch.news(News(kind, run, trial, now))
        if behind and self._several_workers:
            self._asked_to_end.add(run)
            with suppress(OSError):
                self.sweep.folder_of(run).stop_file.touch()
            return False
        return behind

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        cause = self._deaths.get(trial_id) if error else None
        run, ended = self._runs[trial_id], _ended(result or {}, error, cause)
        with self._lock:
            if ended is None or self.study[run.number].state != "running":
                return  # it was stopped
            kind = self._end(run, ended)
            trial = self.study[run.number]
            last = self._reached[run][-1] if self._reached[run] else None
        self.watch.news(News(kind, run, trial, last))

    def died(self, trial_id: str, error: str) -> None:
        """Notes the cause of a run's death, which Ray Tune keeps from a searcher."""
        if cause := loss_of_worker(error):
            self._deaths[trial_id] = cause

    def _end(self, run: TrialRun, ended: Ended) -> Kind:
        if ended.how == "paused":
            return "paused"
        if ended.how == "blocked":
            self._block(ended.reason)
            return "paused"
        try:
            return self.queue.ended(run, ended)
        except StorageError as error:
            self._block(str(error))
            return "paused"

    def _block(self, problem: str | None) -> None:
        """Lets the runs that go on write what they can, and begins no further one."""
        self.problem = problem
        with suppress(OSError):
            self.sweep.stop_file.touch()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler sees results first."""

    def save(self, checkpoint_path: str) -> None:
        """The study is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """The study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune keeps searchers in a file of its own, which nobody reads."""
        return {}


def _ended(result: dict[str, Any], died: bool, cause: str | None = None) -> Ended | None:
    """Returns how a run says that it has ended; None: it was stopped before it could.

    Args:
        result: The last one of the run.
        died: Whether Ray Tune has given it up.
        cause: Why its process died; None: unknown.
    """
    if died:
        why = f", the last time since {cause}" if cause else ""
        return Ended("failed", f"its process died again and again{why}")
    return Ended(result[_HOW], result[_REASON]) if _HOW in result else None


class _Scheduler(FIFOScheduler):
    """Stops runs where the searcher says so, and passes errors of processes on to it."""

    def __init__(self, searcher: _Searcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        behind = self._searcher.reports(trial.trial_id, result)
        return TrialScheduler.STOP if behind else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        with suppress(OSError, TypeError):  # a folder that is gone; no file
            self._searcher.died(trial.trial_id, Path(trial.error_file).read_text(errors="replace"))
        super().on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, Any]:
        return {}
