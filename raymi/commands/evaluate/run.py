"""An evaluation from its plan to its reports, for whoever watches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from raymi.attacks.suites import Ensemble
from raymi.commands.evaluate.plan import EvaluationPlan
from raymi.evaluation.blocks import Outcome, Schedule, Step
from raymi.evaluation.finding import Finding
from raymi.evaluation.model_evaluation import ModelEvaluation
from raymi.evaluation.report import Report, TransferMatrix, transfer_matrix
from raymi.evaluation.scheduler import Lookup, Pool
from raymi.files import save_json
from raymi.ray_backend.evaluation_workers import open_workspace
from raymi.ray_backend.session import Resources
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder
from raymi.tracking.evaluations import LoggedModelRef, log_evaluation
from raymi.tracking.faults import error_with_remedy
from raymi.tracking.store import tracking_uri


class EvaluationCallback(Protocol):
    """Somebody who wants to know how an evaluation goes on; what is left out of a subclass is not
    looked at."""

    def print_line(self, message: str) -> None:
        """A line about what happens to workers; from any thread."""

    def finding(self, finding: Finding) -> None:
        """A check's result, as soon as it is there."""

    def attack_with(self, workers: int) -> None:
        """The workers are there that share the blocks."""

    def begin(self, name: str, schedule: Schedule, main: Sequence[Ensemble]) -> None:
        """A classifier's turn: `main` are the ensembles that it is reported with, the others of the
        schedule belong to the checks."""

    def step(self, step: Step, outcome: Outcome, known: bool) -> None:
        """A step is done; `known`: the ledger had it."""

    def end(self) -> None:
        """All steps are made."""


class NoCallback(EvaluationCallback):
    """Looks at nothing."""


def evaluate(
    plan: EvaluationPlan, callback: EvaluationCallback, resources: Resources | None = None
) -> tuple[list[Report], list[TransferMatrix]]:
    """Makes all steps that the ledgers do not have yet, and keeps the reports beside them.

    Args: plan; watcher; resources, of the `ray_session` that this is within; None: one is opened
        where there are several workers.
    Returns: the reports of the targets in the order in which they were named, and a matrix for each
        attack that surrogates made.
    Raises: UserError for what the user can put right; StepFailed where a step cannot be made;
        StorageError where a ledger cannot be written; Stopped on SIGTERM.
    """
    for judged in plan.targets:
        for finding in judged.seen.findings:
            callback.finding(finding)
    with open_workspace(plan.scaling, callback.print_line, resources) as place:
        makers, targets = plan.assessments(place.device)
        pool = place.open_pool(plan.work([*makers, *targets]))
        callback.attack_with(place.workers)
        for maker in makers:
            _make(callback, maker, pool, plan.made_before([]))
        made_before = plan.made_before(makers)
        reports = [_reported(_make(callback, one, pool, made_before)) for one in targets]
        callback.end()
    matrices = [
        transfer_matrix(reports, ensemble.name, plan.made_on(ensemble.name, makers))
        for ensemble in plan.main
        if makers
    ]
    return reports, matrices


def _make(
    callback: EvaluationCallback, evaluation: ModelEvaluation, pool: Pool, made_before: Lookup
) -> ModelEvaluation:
    """Makes the steps of one classifier; what its checks say is told as soon as they have it
    all."""
    told, checks = False, {ensemble.name for ensemble in evaluation.checks}
    with evaluation.store.lock():
        callback.begin(evaluation.name, evaluation.schedule, evaluation.main)
        for step, outcome, known in evaluation.run(pool, made_before):
            callback.step(step, outcome, known)
            if told or step.ensemble not in checks:
                continue
            if findings := evaluation.check_findings():
                told = True
                for finding in findings:
                    callback.finding(finding)
    return evaluation


def _reported(evaluation: ModelEvaluation) -> Report:
    """What was found, also as files beside the outcomes."""
    report = evaluation.report()
    evaluation.export()
    save_json(report.folder / "report.json", report.as_json(), "all outcomes are kept")
    return report


@dataclass(frozen=True)
class Tracked:
    """An evaluation that was logged to MLflow, or was refused there.

    Args:
        name: of the classifier.
        uri: address of the store; it may hold a password.
        run_id: of the run that has it; None where the store refused it.
        problem: why it refused it, in one line with the remedy.
        untracked: the run of raymi that trained the classifier, where MLflow does not have it and
            the evaluation got a run of its own.
    """

    name: str
    uri: str
    run_id: str | None = None
    problem: str = ""
    untracked: RunFolder | None = None


def track(plan: EvaluationPlan, reports: Sequence[Report]) -> Iterator[Tracked]:
    """Tells MLflow; where it does not answer, the same evaluation tells it later.

    Args: reports of the plan's targets.
    Yields: what came of each, once it is told.
    """
    home = home_folder()
    for judged, report in zip(plan.targets, reports, strict=True):
        found = judged.found
        uri = found.uri or tracking_uri(home)
        model = LoggedModelRef(uri, found.run_id, found.model_id, found.variant)
        try:
            run_id = log_evaluation(
                report,
                model,
                command=plan.request.command,
                experiment=plan.config.tracking.experiment,
                home=home,
                files=[report.folder / "outcomes.parquet"],
            )
        except Exception as error:  # whatever the server or the network does, the numbers are here
            yield Tracked(report.name, uri, problem=error_with_remedy(error, uri))
        else:
            untracked = found.folder if found.run_id is None else None
            yield Tracked(report.name, uri, run_id, untracked=untracked)
