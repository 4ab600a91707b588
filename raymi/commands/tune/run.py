"""A sweep from its first trial to its winner, for whoever watches it.

Trials are compared by the cheap attack that validates them while they train. Of those that came to
their end the best ones are attacked harder, on validation images still: `tune.factor` times
`tune.finalists` of them by PGD-40, and of these the best by AutoAttack. The best of all wins; it
alone is measured on the test set.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from raymi.commands.evaluate.plan import EvaluationPlan, plan_evaluation
from raymi.commands.evaluate.run import EvaluationCallback, evaluate
from raymi.config import ScalingConfig
from raymi.errors import StorageError, UserError, first_line
from raymi.evaluation.attack_task import StepFailed
from raymi.evaluation.report import Report
from raymi.files import checksum
from raymi.ray_backend import head_watch
from raymi.ray_backend.session import Resources, as_many_as_fit, ray_session
from raymi.runs.run_folder import RunFolder
from raymi.signals import Signals, Stopped, nothing
from raymi.tuning.events import SweepCallback
from raymi.tuning.results_table import Finalist
from raymi.tuning.run_trial import held, in_this_process
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Sweep, TrialRun
from raymi.weights import read_weights_file

POLL_SECONDS = 0.1
PGD, AUTOATTACK = "pgd-40", "autoattack"


@dataclass(frozen=True)
class Place:
    """Where a sweep computes: Ray's resources, the workers that they hold, and how many runs go on
    at once."""

    resources: Resources
    scaling: ScalingConfig
    concurrent: int


@contextmanager
def sweep_workspace(sweep: Sweep, print_line: Callable[[str], None]) -> Iterator[Place]:
    """Ray for the length of a sweep.

    Args:
        sweep: Names the workers that a trial needs.
        say: Takes lines about waits for Ray.

    Raises:
        UserError: Ray does not start, or has no room for one run.
    """
    scaling, asked = sweep.config_of({}).scaling, sweep.definition.tune.concurrent
    each, runs = scaling.most_workers, sweep.num_trials * len(sweep.seeds)
    most = runs if asked is None else min(asked, runs)
    asked_for = as_many_as_fit(scaling, each, most)
    with ray_session(asked_for, dashboard=True, print_line=print_line) as resources:
        concurrent = resources.places // each
        if concurrent == 0:
            raise UserError(
                f"a trial has scaling.workers={each}, the cluster has room for "
                f"{resources.places}: ask for fewer, or add nodes"
            )
        yield Place(resources, scaling, min(concurrent, most))


def train_trials(
    sweep: Sweep,
    study: Study,
    place: Place,
    watch: SweepCallback,
    on_signal: Callable[[], object] = nothing,
) -> None:
    """Trains all trials to their end; Ray Tune runs in a thread, so that signals are ours.

    Args:
        on_signal: called in the handler of the first SIGINT or SIGTERM.

    Raises: Stopped, once all runs have a checkpoint; StorageError where they cannot write one.
    """
    from raymi.ray_backend.tune import run_sweep

    errors: list[BaseException] = []

    def body() -> None:
        try:
            run_sweep(
                sweep,
                study,
                use_gpu=place.resources.use_gpu,
                concurrent=place.concurrent,
                watch=watch,
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True, name="ray-tune")
    with Signals(sweep.stop_file, on_signal) as signals:
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if signals.is_new():
                watch.print_line(
                    f"{signals.name}: the trials write a checkpoint and end; again: at once"
                )
            signals.check(work_has_begun=True)
            _check_ray(head_watch.check)
        if signals.received is not None:
            raise Stopped(signals.received)
    if errors:
        if not isinstance(errors[0], (UserError, StorageError)):
            _check_ray(head_watch.check_after_an_error)
        raise errors[0]


def _check_ray(check: Callable[[], None]) -> None:
    """Ends a sweep whose Ray is lost.

    Raises:
        StepFailed: It is.
    """
    try:
        check()
    except head_watch.RayLost as loss:
        raise StepFailed(str(loss)) from None


def judge(
    sweep: Sweep, study: Study, place: Place, watch: EvaluationCallback
) -> tuple[Finalist, ...]:
    """The finalists of a sweep whose trials have ended, the winner first; empty where the
    validation of training decides, or nothing came to its end.

    What was attacked before is not attacked again.

    Raises: as `evaluate` does.
    """
    tune = sweep.definition.tune
    if not tune.finalists:
        return ()
    first = candidates(sweep, study)[: tune.factor * tune.finalists]
    pgd = _accuracies(sweep, first, PGD, place, watch)
    by_pgd = sorted(first, key=lambda number: -_mean(sweep, pgd, number))
    best, others = by_pgd[: tune.finalists], by_pgd[tune.finalists :]
    autoattack = _accuracies(sweep, best, AUTOATTACK, place, watch)
    finalists = []
    for number in best:
        run = max(sweep.runs_of(number), key=lambda run: (autoattack[run], pgd[run]))
        means = _mean(sweep, pgd, number), _mean(sweep, autoattack, number)
        finalists.append(Finalist(number, run, *means))
    finalists.sort(key=lambda one: (one.autoattack, one.pgd), reverse=True)
    for number in others:
        run = max(sweep.runs_of(number), key=lambda run: pgd[run])
        finalists.append(Finalist(number, run, _mean(sweep, pgd, number)))
    return tuple(finalists)


def candidates(sweep: Sweep, study: Study) -> list[int]:
    """Trials that may win, the best in robust accuracy during training first: those that came to
    their end, of several objectives those on the front."""
    objectives = sweep.definition.tune.objectives
    ended = [trial for trial in study if trial.state == "finished"]
    among = study.front() if len(objectives) > 1 else ended
    ranked = sorted(among, key=lambda trial: -(trial.objectives or (0.0,))[-1])
    return [trial.number for trial in ranked]


def winner(sweep: Sweep, study: Study, finalists: Sequence[Finalist]) -> TrialRun | None:
    """The run that won: that of the first finalist, or without any the best one on validation
    during training; None where nothing came to its end."""
    if finalists:
        return finalists[0].run
    ranked = candidates(sweep, study)
    return _best_run(sweep, ranked[0]) if ranked else None


def _best_run(sweep: Sweep, number: int) -> TrialRun:
    """That of a trial's seeds which is the best on validation during training."""
    measured = {run: sweep.measured(run) for run in sweep.runs_of(number)}
    return max(measured, key=lambda run: measured[run][-1].robust)


def _mean(sweep: Sweep, accuracies: dict[TrialRun, float], number: int) -> float:
    return fmean(accuracies[run] for run in sweep.runs_of(number))


def _accuracies(
    sweep: Sweep,
    numbers: Sequence[int],
    attack: str,
    place: Place,
    watch: EvaluationCallback,
) -> dict[TrialRun, float]:
    """By run, the accuracy on validation images under an attack."""
    runs = [run for number in numbers for run in sweep.runs_of(number)]
    same = {run: _digest(sweep.folder_of(run)) for run in runs}  # trials may end with one network
    first = {digest: run for run, digest in reversed(same.items())}
    if not runs:
        return {}
    attacked = list(first.values())
    plan = plan_of(sweep, attacked, place, "split=val", f"attacks={attack}", "checks=0")
    reports, _ = evaluate(plan, watch, place.resources)
    found = {run: _accuracy(report, attack) for run, report in zip(attacked, reports, strict=True)}
    return {run: found[first[digest]] for run, digest in same.items()}


def _digest(folder: RunFolder) -> str:
    """Computes the checksum of a run's best weights."""
    weights = read_weights_file(folder.weights("best")).tensors
    return checksum(b"".join(weights[key].numpy().tobytes() for key in sorted(weights)))


def _accuracy(report: Report, attack: str) -> float:
    return next(result.accuracy for result in report.results if result.name == attack)


def plan_of(sweep: Sweep, runs: Sequence[TrialRun], place: Place, *words: str) -> EvaluationPlan:
    """A checked evaluation of runs, with as many workers as a sweep has.

    Args: words, of `python -m raymi.evaluate`.
    """
    scaling, samples = place.scaling, sweep.definition.tune.samples
    asked = [
        f"out={sweep.trials}",
        f"model={','.join(sweep.folder_of(run).name for run in runs)}",
        f"results={sweep.path / 'evaluations'}",
        f"scaling.workers={place.resources.places}",
        f"scaling.cpus_per_worker={scaling.cpus_per_worker}",
        f"scaling.use_gpu={scaling.use_gpu}",
        *words,
    ]
    if samples is not None:
        asked.append(f"samples={samples}")
    return plan_evaluation(asked)


def complete(sweep: Sweep, run: TrialRun, place: Place) -> None:
    """Makes a finished run of a sweep an ordinary one: its models are measured on the test set, as
    its configuration says.

    Raises: StepFailed where it cannot be measured.
    """
    import ray
    from ray.exceptions import RayError

    gpu = place.resources.use_gpu
    task = ray.remote(_complete).options(
        num_cpus=place.scaling.cpus_per_worker, num_gpus=int(gpu), max_retries=3
    )
    answer = task.remote(str(sweep.path), run, "cuda" if gpu else "cpu", str(Path.cwd()))
    try:
        while not ray.wait([answer], timeout=1)[0]:
            _check_ray(head_watch.check)
        problem = ray.get(answer)
    except RayError as error:
        _check_ray(head_watch.check_after_an_error)
        raise StepFailed(f"the winner could not be measured: {first_line(error)}") from None
    if problem is not None:
        raise StepFailed(f"the winner could not be measured: {problem}")


def _complete(folder: str, run: TrialRun, device: str, import_path: str) -> str | None:
    """On a worker; returns what went wrong."""
    if import_path not in sys.path:
        sys.path.insert(0, import_path)  # the user's own models
    sweep = Sweep(Path(folder))
    own = sweep.folder_of(run)
    train_run = in_this_process(torch.device(device), sweep.stop_file, test=True)
    try:
        with ExitStack() as stack:
            if not held(stack, own, sweep.stop_file):
                return f"the run {own.name} is running in another process"
            ended = train_run(own.read_config(), own, "classifier", None)
    except (UserError, StorageError) as error:
        return str(error)
    return ended.reason if ended.how == "failed" else None
