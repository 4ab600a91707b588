"""Output of a comparison: a line after each run, the closing table, the files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten

from rich.console import Console

from raymi.commands.compare.options import Comparison
from raymi.commands.compare.results import ArmSummary, RunResult, summarise, table
from raymi.commands.compare.run import same_weights
from raymi.files import save, save_json
from raymi.formatting import markdown_table, percent_text, threat_text
from raymi.terminal.print_line import print_line, print_rows

_EQUAL = ("mi-off", "at")  # switching MI off must change nothing


class ProgressPrinter:
    """Prints a line after each run, with the number of pending runs.

    Args:
        console: where it prints.
        comparison: of the runs.
        pending: number of runs without a result.
    """

    def __init__(self, console: Console, comparison: Comparison, pending: int) -> None:
        self._console, self._comparison = console, comparison
        self._start, self._ended, self._pending = time.monotonic(), 0, pending
        num = len(comparison.runs)
        finished = f", {num - pending} already finished" if pending < num else ""
        parallel = f", {comparison.parallel} at a time" if pending else ""
        print_line(self._console, f"comparison {comparison.folder}: {num} runs{finished}{parallel}")

    def print_result(self, result: RunResult) -> None:
        """Prints the result of a run."""
        self._ended += 1
        self._pending -= 1
        text = f"{result.arm} seed {result.seed}: {_result_text(result)}"
        if result.status == "failed":
            folder = self._comparison.folder / f"{result.arm}-seed{result.seed}"
            text += f" (see {folder / 'output.log'})"
        print_line(self._console, f"{text}; {self._pending} left{self._time_left()}")

    def _time_left(self) -> str:
        """Returns the estimated time once each slot has finished a run; empty before."""
        if not self._pending or self._ended < self._comparison.parallel:
            return ""
        seconds = (time.monotonic() - self._start) / self._ended * self._pending
        return f", about {max(1, round(seconds / 60))} min"


def _result_text(result: RunResult) -> str:
    if result.status == "diverged":
        return f"diverged at step {result.step}"
    if result.status == "failed":
        return f"failed: {result.reason}"
    assert result.clean is not None
    assert result.robust is not None
    return (
        f"clean {percent_text(result.clean)}, "
        f"PGD-{result.attack_steps} {percent_text(result.robust)}, {result.minutes:.1f} min"
    )


@dataclass(frozen=True)
class Outcome:
    """Outcome of a comparison.

    Attributes:
        results: in the order of the runs.
        summaries: of each arm.
        rows: the closing table as rows of text.
        same_weights: True where `mi-off` has the weights of `at`, by seed.
    """

    results: list[RunResult]
    summaries: list[ArmSummary]
    rows: list[tuple[str, ...]]
    same_weights: dict[int, bool] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Lines under the table."""
        notes = [
            "mean ± standard error over seeds, of the best epoch on validation; differences in "
            "percentage points, paired by seed"
        ]
        if self.same_weights:
            equal, num = sum(self.same_weights.values()), len(self.same_weights)
            other = [str(seed) for seed, same in self.same_weights.items() if not same]
            but = f"; not with seed {', '.join(other)}" if other else ""
            notes.append(
                f"mi-off has the weights of at, bit for bit, with {equal} of {num} seeds{but}"
            )
        notes += [
            shorten(f"{r.arm} seed {r.seed}: {_result_text(r)}", 200, placeholder=" ...")
            for r in self.results
            if r.status != "finished"
        ]
        return notes


def write_outcome(comparison: Comparison, results: Sequence[RunResult]) -> Outcome:
    """Writes `comparison.json` and `comparison.md` of the results so far.

    Raises:
        StorageError: a file cannot be written.
    """
    order = {(run.arm, run.seed): i for i, run in enumerate(comparison.runs)}
    results = sorted(results, key=lambda r: order[r.arm, r.seed])
    summaries = summarise(results, comparison.arms)
    steps = {run.config.evaluation.steps for run in comparison.runs}
    rows = table(summaries, f"PGD-{steps.pop()}")
    outcome = Outcome(results, summaries, rows, _compare_weights(comparison, results))
    content = {
        "recipe": comparison.recipe,
        "command": comparison.command,
        "reference": comparison.arms[0],
        "arms": comparison.arms,
        "seeds": comparison.seeds,
        "runs": [asdict(result) for result in outcome.results],
        "summary": [asdict(summary) for summary in outcome.summaries],
        "mi_off_has_the_weights_of_at": outcome.same_weights,
    }
    save_json(_json_file(comparison), content)
    save(_markdown_file(comparison), f"# {outcome_text(comparison, outcome)}\n".encode())
    return outcome


def outcome_text(comparison: Comparison, outcome: Outcome) -> str:
    """Returns title, command, table and notes as Markdown."""
    parts = [_title(comparison), f"`{comparison.command}`", markdown_table(outcome.rows)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in outcome.notes)])


def _compare_weights(comparison: Comparison, results: Sequence[RunResult]) -> dict[int, bool]:
    finished = {(r.arm, r.seed) for r in results if r.status == "finished"}
    folders = {(run.arm, run.seed): run.folder for run in comparison.runs}
    off, at = _EQUAL
    return {
        seed: same_weights(folders[off, seed], folders[at, seed])
        for seed in comparison.seeds
        if {(off, seed), (at, seed)} <= finished
    }


def _title(comparison: Comparison) -> str:
    config = comparison.runs[0].config
    threat, num = threat_text(config.attack.norm, config.attack.eps), len(comparison.seeds)
    seeds = f"{num} seed{'s' if num > 1 else ''}"
    return f"{comparison.folder.name}: {config.data.name}, {threat}, {seeds}"


def print_outcome(console: Console, comparison: Comparison, outcome: Outcome) -> None:
    """Prints the table, its notes, and the paths of the files."""
    print_line(console, _title(comparison))
    print_rows(console, outcome.rows, left=2)
    files = f"files: {_markdown_file(comparison)}, {_json_file(comparison)}"
    for line in (*outcome.notes, files):
        print_line(console, line)


def _json_file(comparison: Comparison) -> Path:
    return comparison.folder / "comparison.json"


def _markdown_file(comparison: Comparison) -> Path:
    return comparison.folder / "comparison.md"
