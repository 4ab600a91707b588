"""Final evaluation of a sweep: chooses the winner by stronger attacks on validation images.

During training, trials are compared by a cheap attack. `tune.factor` times `tune.finalists` of the
best finished trials are then attacked by PGD-40, and the best of these by AutoAttack. The winner
alone is evaluated on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from raymi.commands.evaluate.options import requested
from raymi.commands.evaluate.plan import EvaluationPlan, plan_evaluation
from raymi.commands.evaluate.run import evaluate
from raymi.evaluation.callback import EvaluationCallback
from raymi.evaluation.report import Report
from raymi.files import checksum
from raymi.ray_backend.tune_driver import SweepWorkspace
from raymi.runs.run_folder import RunFolder
from raymi.tuning.results_table import Finalist
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Sweep, TrialRun
from raymi.weights import read_weights_file

PGD, AUTOATTACK = "pgd-40", "autoattack"


def evaluate_finalists(
    sweep: Sweep, study: Study, workspace: SweepWorkspace, callback: EvaluationCallback
) -> tuple[Finalist, ...]:
    """Evaluates the best trials of a completed sweep on validation images.

    Saved outcomes are reused.

    Returns:
        The finalists, the winner first; empty if `tune.finalists` is 0 or no trial has finished.

    Raises:
        The errors of `evaluate`.
    """
    tune = sweep.definition.tune
    if not tune.finalists:
        return ()
    first = candidates(sweep, study)[: tune.factor * tune.finalists]
    pgd = _accuracies(sweep, first, PGD, workspace, callback)
    by_pgd = sorted(first, key=lambda number: -_mean(sweep, pgd, number))
    best, others = by_pgd[: tune.finalists], by_pgd[tune.finalists :]
    autoattack = _accuracies(sweep, best, AUTOATTACK, workspace, callback)
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
    """Returns the trials that can win, by robust accuracy during training.

    These are the finished ones; with several objectives, those on the Pareto front.
    """
    objectives = sweep.definition.tune.objectives
    finished = [trial for trial in study if trial.state == "finished"]
    eligible = study.front() if len(objectives) > 1 else finished
    ranked = sorted(eligible, key=lambda trial: -(trial.objectives or (0.0,))[-1])
    return [trial.number for trial in ranked]


def select_winner(sweep: Sweep, study: Study, finalists: Sequence[Finalist]) -> TrialRun | None:
    """Returns the first finalist's run, or without finalists the best one on validation.

    Returns:
        None if no trial has finished.
    """
    if finalists:
        return finalists[0].run
    ranked = candidates(sweep, study)
    return _best_run(sweep, ranked[0]) if ranked else None


def _best_run(sweep: Sweep, number: int) -> TrialRun:
    """Returns the run of a trial that is best on validation during training."""
    return max(sweep.runs_of(number), key=lambda run: sweep.measurements(run)[-1].robust)


def _mean(sweep: Sweep, accuracies: dict[TrialRun, float], number: int) -> float:
    return fmean(accuracies[run] for run in sweep.runs_of(number))


def _accuracies(
    sweep: Sweep,
    numbers: Sequence[int],
    attack: str,
    workspace: SweepWorkspace,
    callback: EvaluationCallback,
) -> dict[TrialRun, float]:
    """Evaluates runs on validation images under an attack; returns accuracies by run."""
    runs = [run for number in numbers for run in sweep.runs_of(number)]
    digests = {run: _digest(sweep.folder_of(run)) for run in runs}
    first = {digest: run for run, digest in reversed(digests.items())}  # equal weights: once
    if not runs:
        return {}
    attacked = list(first.values())
    words = ("split=val", f"attacks={attack}", "checks=0")
    plan = evaluation_plan(sweep, attacked, workspace, *words)
    reports, _ = evaluate(plan, callback, workspace.resources)
    accuracies = {
        run: _accuracy(report, attack) for run, report in zip(attacked, reports, strict=True)
    }
    return {run: accuracies[first[digest]] for run, digest in digests.items()}


def _digest(folder: RunFolder) -> str:
    """Computes the checksum of a run's best weights."""
    weights = read_weights_file(folder.weights("best")).tensors
    return checksum(b"".join(weights[key].numpy().tobytes() for key in sorted(weights)))


def _accuracy(report: Report, attack: str) -> float:
    return next(result.accuracy for result in report.results if result.name == attack)


def evaluation_plan(
    sweep: Sweep, runs: Sequence[TrialRun], workspace: SweepWorkspace, *words: str
) -> EvaluationPlan:
    """Plans an evaluation of runs on all workers of the sweep.

    Args:
        sweep: The sweep.
        runs: Runs to evaluate.
        workspace: Compute resources.
        words: Further words of `python -m raymi.evaluate`.
    """
    scaling, samples = workspace.scaling, sweep.definition.tune.samples
    arguments = [
        f"out={sweep.trials}",
        f"model={','.join(sweep.folder_of(run).name for run in runs)}",
        f"results={sweep.path / 'evaluations'}",
        f"scaling.workers={workspace.resources.slots}",
        f"scaling.cpus_per_worker={scaling.cpus_per_worker}",
        f"scaling.use_gpu={scaling.use_gpu}",
        *words,
    ]
    if samples is not None:
        arguments.append(f"samples={samples}")
    return plan_evaluation(requested(arguments))
