"""Driver of a sweep: opens Ray, runs Ray Tune in a thread, evaluates the winner on a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from raymi.config import ScalingConfig
from raymi.errors import StorageError, UserError, first_line
from raymi.evaluation.attack_task import StepFailed
from raymi.ray_backend import head_watch
from raymi.ray_backend.background import BackgroundCall
from raymi.ray_backend.session import Resources, ray_session, scale_to_fit
from raymi.ray_backend.worker_process import add_import_path
from raymi.signals import Signals, Stopped, nothing
from raymi.tuning.events import SweepCallback
from raymi.tuning.run_trial import in_this_process, lock_run
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Sweep, TrialRun

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class SweepWorkspace:
    """Compute resources of a sweep.

    Attributes:
        resources: Resources of the Ray session.
        scaling: Workers of one trial.
        concurrent: Number of concurrent runs.
    """

    resources: Resources
    scaling: ScalingConfig
    concurrent: int


@contextmanager
def open_sweep_workspace(
    sweep: Sweep, print_line: Callable[[str], None]
) -> Iterator[SweepWorkspace]:
    """Opens a Ray session for a sweep.

    Args:
        sweep: The sweep.
        print_line: Prints a message about waiting for Ray.

    Raises:
        UserError: Ray does not start, or has no room for one run.
    """
    scaling, limit = sweep.config_of({}).scaling, sweep.definition.tune.concurrent
    workers, runs = scaling.most_workers, sweep.num_trials * len(sweep.seeds)
    max_runs = runs if limit is None else min(limit, runs)
    session_scaling = scale_to_fit(scaling, workers, max_runs)
    with ray_session(session_scaling, dashboard=True, print_line=print_line) as resources:
        concurrent = resources.slots // workers
        if concurrent == 0:
            raise UserError(
                f"a trial has scaling.workers={workers}, the cluster has room for "
                f"{resources.slots}: ask for fewer, or add nodes"
            )
        yield SweepWorkspace(resources, scaling, min(concurrent, max_runs))


def train_trials(
    sweep: Sweep,
    study: Study,
    workspace: SweepWorkspace,
    callback: SweepCallback,
    on_signal: Callable[[], object] = nothing,
) -> None:
    """Trains all trials to their end.

    Ray Tune runs in a thread, so that the main thread handles signals.

    Args:
        sweep: The sweep.
        study: Its study.
        workspace: Compute resources.
        callback: Receives the events of the sweep.
        on_signal: Called in the handler of the first SIGINT or SIGTERM.

    Raises:
        Stopped: After a signal, once all runs have a checkpoint.
        StorageError: A run cannot write its checkpoint.
        StepFailed: The head of Ray is lost.
    """
    from raymi.ray_backend.tune import run_sweep

    tuning = BackgroundCall(
        "ray-tune",
        lambda: run_sweep(
            sweep,
            study,
            use_gpu=workspace.resources.use_gpu,
            concurrent=workspace.concurrent,
            callback=callback,
        ),
    )
    with Signals(sweep.stop_file, on_signal) as signals:
        tuning.start()
        while tuning.is_alive():
            tuning.join(POLL_SECONDS)
            if signals.is_new():
                callback.print_line(
                    f"{signals.name}: trials write a checkpoint and stop; press Ctrl-C again to "
                    "stop now"
                )
            signals.check(work_has_begun=True)
            _check_head(head_watch.check)
        if signals.received is not None:
            raise Stopped(signals.received)
    if tuning.error is not None:
        if not isinstance(tuning.error, (UserError, StorageError)):
            _check_head(head_watch.check_after_error)
        raise tuning.error


def _check_head(check: Callable[[], None]) -> None:
    """Checks the head of Ray.

    Raises:
        StepFailed: It is lost.
    """
    try:
        check()
    except head_watch.RayLost as loss:
        raise StepFailed(str(loss)) from None


def evaluate_winner(sweep: Sweep, run: TrialRun, workspace: SweepWorkspace) -> None:
    """Evaluates the models of a finished run on the test set, on a worker.

    Afterwards the run is an ordinary one, as its configuration defines it.

    Raises:
        StepFailed: The evaluation failed.
    """
    import ray
    from ray.exceptions import RayError

    use_gpu = workspace.resources.use_gpu
    task = ray.remote(_evaluate_winner).options(
        num_cpus=workspace.scaling.cpus_per_worker, num_gpus=int(use_gpu), max_retries=3
    )
    reference = task.remote(str(sweep.path), run, "cuda" if use_gpu else "cpu", str(Path.cwd()))
    try:
        while not ray.wait([reference], timeout=1)[0]:
            _check_head(head_watch.check)
        problem = ray.get(reference)
    except RayError as error:
        _check_head(head_watch.check_after_error)
        raise StepFailed(f"cannot evaluate the winner: {first_line(error)}") from None
    if problem is not None:
        raise StepFailed(f"cannot evaluate the winner: {problem}")


def _evaluate_winner(folder: str, run: TrialRun, device: str, import_path: str) -> str | None:
    """Evaluates the winner in a worker; returns the reason of a failure."""
    add_import_path(import_path)
    sweep = Sweep(Path(folder))
    run_folder = sweep.folder_of(run)
    train_run = in_this_process(torch.device(device), sweep.stop_file, test=True)
    try:
        with ExitStack() as stack:
            if not lock_run(stack, run_folder, sweep.stop_file):
                return f"the run {run_folder.name} is in use by another process"
            result = train_run(run_folder.read_config(), run_folder, "classifier", None)
    except (UserError, StorageError) as error:
        return str(error)
    return result.reason if result.status == "failed" else None
