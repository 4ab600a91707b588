"""Runs a planned evaluation, reports its events to a callback, and logs it to MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raymi.commands.evaluate.plan import EvaluationPlan
from raymi.evaluation.callback import EvaluationCallback
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


def evaluate(
    plan: EvaluationPlan,
    callback: EvaluationCallback,
    resources: Resources | None = None,
    *,
    here: bool = False,
) -> tuple[list[Report], list[TransferMatrix]]:
    """Runs all steps that are not in the outcome stores, and writes reports beside the outcomes.

    Args:
        plan: checked evaluation.
        callback: receives events.
        resources: of an open `ray_session`; None: one is opened for several workers.
        here: run all attacks in this process, also within a Ray job.

    Returns:
        The reports of the targets in the order of the plan, and a transfer matrix for each attack
        of the surrogates.

    Raises:
        UserError: the user can fix it.
        StepFailed: a step failed.
        StorageError: a store cannot be written.
        Stopped: on SIGTERM.
    """
    for target in plan.targets:
        for finding in target.checks.findings:
            callback.on_finding(finding)
    with open_workspace(plan.scaling, callback.on_message, resources, here=here) as workspace:
        surrogates, targets = plan.evaluations(workspace.device)
        pool = workspace.open_pool(plan.worker_job([*surrogates, *targets]))
        callback.on_workers(workspace.workers)
        for surrogate in surrogates:
            _run(callback, surrogate, pool, plan.lookup([]))
        lookup = plan.lookup(surrogates)
        reports = [_write_report(_run(callback, one, pool, lookup)) for one in targets]
        callback.on_end()
    matrices = [
        transfer_matrix(reports, ensemble.name, plan.transfer_names(ensemble.name, surrogates))
        for ensemble in plan.main
        if surrogates
    ]
    return reports, matrices


def _run(
    callback: EvaluationCallback, evaluation: ModelEvaluation, pool: Pool, lookup: Lookup
) -> ModelEvaluation:
    """Runs the steps of one classifier; reports findings once the checks' attacks have run."""
    checks = {ensemble.name for ensemble in evaluation.checks}
    findings: tuple[Finding, ...] = ()
    with evaluation.store.lock():
        callback.on_model(evaluation.name, evaluation.schedule, evaluation.main)
        for step, outcome, cached in evaluation.run(pool, lookup):
            callback.on_step(step, outcome, cached)
            if not findings and step.ensemble in checks:
                findings = evaluation.check_findings()
                for finding in findings:
                    callback.on_finding(finding)
    return evaluation


def _write_report(evaluation: ModelEvaluation) -> Report:
    """Writes the report and the exported outcomes."""
    report = evaluation.report()
    evaluation.export()
    save_json(report.folder / "report.json", report.as_json(), "all outcomes are saved")
    return report


@dataclass(frozen=True)
class Tracked:
    """Result of logging an evaluation to MLflow.

    Args:
        name: of the classifier.
        uri: address of the store; it may hold a password.
        run_id: of the MLflow run; None: the store refused the evaluation.
        problem: reason of the refusal in one line, with the remedy.
        untracked: training run of the classifier, if MLflow does not have it and the evaluation has
            a separate run.
    """

    name: str
    uri: str
    run_id: str | None = None
    problem: str = ""
    untracked: RunFolder | None = None


def track(plan: EvaluationPlan, reports: Sequence[Report]) -> Iterator[Tracked]:
    """Logs reports to MLflow; if a store does not answer, the same command delivers them later.

    Args:
        plan: of the evaluation.
        reports: of the plan's targets.

    Yields:
        The result for each report.
    """
    home = home_folder()
    for target, report in zip(plan.targets, reports, strict=True):
        found = target.model
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
        except Exception as error:  # any error of the server or network: the results are on disk
            yield Tracked(report.name, uri, problem=error_with_remedy(error, uri))
        else:
            untracked = found.folder if found.run_id is None else None
            yield Tracked(report.name, uri, run_id, untracked=untracked)
