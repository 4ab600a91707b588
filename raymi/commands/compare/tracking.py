"""Results of a comparison for MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raymi.commands.compare.options import Comparison
from raymi.commands.compare.report import Outcome, outcome_text
from raymi.commands.compare.results import MEASURES, ArmSummary, RunResult
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import home_folder
from raymi.signals import Stopped, ended_by_sigterm
from raymi.statistics import Mean
from raymi.tracking.delivery import FAIL_SECONDS, FINISH_SECONDS
from raymi.tracking.provenance import describe_run
from raymi.tracking.tracked_comparison import (
    ComparisonState,
    ComparisonTracker,
    EndedRun,
    TrackedComparison,
)

_NAMES = dict(zip(MEASURES, ("test_clean", "test_robust", "val_robust"), strict=True))
_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


def new_tracker(
    comparison: Comparison, outcome: Outcome, log: Callable[[str], None]
) -> ComparisonTracker | None:
    """Starts the delivery of a comparison; returns None if its runs are not tracked.

    Args:
        comparison: plan.
        outcome: of the runs that ended before.
        log: callback for a line to the user.
    """
    configs = [run.config for run in comparison.runs]
    if not configs[0].tracking.enabled:
        return None
    folder = RunFolder(comparison.folder)
    describe_run(folder, comparison.recipe, comparison.command)
    params = {
        "arms": ", ".join(comparison.arms),
        "seeds": ", ".join(map(str, comparison.seeds)),
        "reference": comparison.arms[0],
    }
    tracked = TrackedComparison(folder, configs, params, home_folder())
    tracker = ComparisonTracker(tracked, tracked_state(comparison, outcome), log)
    tracker.start()
    return tracker


def tracked_state(comparison: Comparison, outcome: Outcome) -> ComparisonState:
    """Returns the results so far for MLflow."""
    runs = {(run.arm, run.seed): run for run in comparison.runs}
    ended = []
    for result in outcome.results:
        run = runs[result.arm, result.seed]
        status = _STATUS[result.status]
        ended.append(EndedRun(run.folder, run.config, status, _outcome_line(result)))
    metrics = {
        name: value
        for summary in outcome.summaries
        for name, value in _metrics(summary, comparison.arms[0])
    }
    return ComparisonState(outcome_text(comparison, outcome), ended, metrics, outcome.rows)


def _outcome_line(result: RunResult) -> str:
    if result.status == "diverged":
        return f"Diverged at step {result.step}."
    return f"Failed: {result.reason}." if result.status == "failed" else ""


def _metrics(summary: ArmSummary, reference: str) -> Iterator[tuple[str, float]]:
    """Yields metrics of an arm, such as `bounded/test_robust_minus_at`; fractions."""
    parts: tuple[tuple[str, dict[str, Mean | None]], ...] = (
        ("", dict(summary.means)),
        (f"_minus_{reference}", dict(summary.differences)),
    )
    for suffix, means in parts:
        for measure, mean in means.items():
            if mean is None:
                continue
            name = f"{summary.arm}/{_NAMES[measure]}{suffix}"
            yield name, mean.mean
            if mean.error is not None:
                yield f"{name}_error", mean.error


def finish_tracking(tracker: ComparisonTracker, status: str, command: str) -> int:
    """Delivers the rest of a comparison; a signal interrupts it.

    Args:
        tracker: of the comparison.
        status: FINISHED, KILLED or FAILED.
        command: that continues the comparison, and delivers what is left.

    Returns:
        0, or the exit code of an end by a signal.
    """
    timeout = FINISH_SECONDS if status == "FINISHED" else FAIL_SECONDS
    try:
        with ended_by_sigterm(tracker.interrupt):
            if not tracker.close(status, timeout, FAIL_SECONDS):
                tracker.log(tracker.undelivered(command))
            return 0
    except (Stopped, KeyboardInterrupt) as error:
        stop = Stopped.of(error)
        tracker.break_off()
        tracker.log(f"stopped by {stop.name} before MLflow had everything; deliver it: {command}")
        return stop.exit_code
