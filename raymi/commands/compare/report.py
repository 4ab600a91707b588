"""What a comparison tells: a line for each run that ends, the closing table, the files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console

from raymi.commands.compare.options import Comparison
from raymi.commands.compare.results import ArmSummary, RunResult, markdown, summarise, table
from raymi.commands.compare.run import same_weights
from raymi.files import write_atomically
from raymi.terminal.console import Table
from raymi.terminal.print_line import print_line, print_lines
from raymi.terminal.threat import threat_text

_EQUAL = ("mi-off", "at")  # switching MI off must change nothing


class Progress:
    """Prints a line for each run that ends, with how much is left.

    Args: console; comparison; num_left, runs that are to be run now.
    """

    def __init__(self, console: Console, comparison: Comparison, num_left: int) -> None:
        self._console, self._comparison = console, comparison
        self._began, self._ended, self._left = time.monotonic(), 0, num_left
        num = len(comparison.runs)
        there = f", {num - num_left} of them there already" if num_left < num else ""
        at_once = f", {comparison.parallel} at once" if num_left else ""
        print_line(self._console, f"comparison {comparison.folder}: {num} runs{there}{at_once}")

    def ended(self, result: RunResult) -> None:
        """Says how a run ended."""
        self._ended += 1
        self._left -= 1
        text = f"{result.arm} seed {result.seed}: {_outcome(result)}"
        if result.status == "failed":
            folder = self._comparison.folder / f"{result.arm}-seed{result.seed}"
            text += f" (see {folder / 'output.log'})"
        print_line(self._console, f"{text}; {self._left} left{self._time_left()}")

    def _time_left(self) -> str:
        """By the pace so far, once every place has had its first run."""
        if not self._left or self._ended < self._comparison.parallel:
            return ""
        seconds = (time.monotonic() - self._began) / self._ended * self._left
        return f", about {max(1, round(seconds / 60))} min"


def _outcome(result: RunResult) -> str:
    if result.status == "diverged":
        return f"diverged at step {result.step}"
    if result.status == "failed":
        return f"failed: {result.reason}"
    assert result.clean is not None
    assert result.robust is not None
    return (
        f"clean {100 * result.clean:.1f}%, PGD-{result.attack_steps} {100 * result.robust:.1f}%, "
        f"{result.minutes:.1f} min"
    )


@dataclass(frozen=True)
class Outcome:
    """What came out: results in the order of the runs, a summary for each arm, the closing table
    as rows of text, and whether `mi-off` has the weights of `at`, for each seed that has both."""

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
            shorten(f"{r.arm} seed {r.seed}: {_outcome(r)}", 200, placeholder=" ...")
            for r in self.results
            if r.status != "finished"
        ]
        return notes


def keep(comparison: Comparison, results: Sequence[RunResult]) -> Outcome:
    """Writes `comparison.json` and `comparison.md` of what is there so far."""
    order = {(run.arm, run.seed): i for i, run in enumerate(comparison.runs)}
    results = sorted(results, key=lambda r: order[r.arm, r.seed])
    summaries = summarise(results, comparison.arms)
    steps = {run.config.evaluation.steps for run in comparison.runs}
    rows = table(summaries, f"PGD-{steps.pop()}")
    outcome = Outcome(results, summaries, rows, _compared_weights(comparison, results))
    write_atomically(_json(comparison), _as_json(comparison, outcome).encode())
    text = [f"# {_title(comparison)}", f"`{comparison.command}`", markdown(rows).strip()]
    text += ["\n".join(f"- {note}" for note in outcome.notes)]
    write_atomically(_markdown(comparison), ("\n\n".join(text) + "\n").encode())
    return outcome


def _as_json(comparison: Comparison, outcome: Outcome) -> str:
    content: dict[str, Any] = {
        "recipe": comparison.recipe,
        "command": comparison.command,
        "reference": comparison.arms[0],
        "arms": comparison.arms,
        "seeds": comparison.seeds,
        "runs": [asdict(result) for result in outcome.results],
        "summary": [asdict(summary) for summary in outcome.summaries],
        "mi_off_has_the_weights_of_at": outcome.same_weights,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _compared_weights(comparison: Comparison, results: Sequence[RunResult]) -> dict[int, bool]:
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


def show(console: Console, comparison: Comparison, outcome: Outcome) -> None:
    """Prints the table, what is to be said of it, and where the files are."""
    print_line(console, _title(comparison))
    if console.is_terminal:
        console.print(_rich_table(outcome.rows))
    else:  # whole lines, however long
        print_lines(console, markdown(outcome.rows))
    for line in (*outcome.notes, f"files: {_markdown(comparison)}, {_json(comparison)}"):
        print_line(console, line)


def _rich_table(rows: Sequence[Sequence[str]]) -> Table:
    header, *body = rows
    shown = Table()
    for i, heading in enumerate(header):
        shown.add_column(heading, justify="left" if i < 2 else "right", no_wrap=i == 0)
    for row in body:
        shown.add_row(*row)
    return shown


def _json(comparison: Comparison) -> Path:
    return comparison.folder / "comparison.json"


def _markdown(comparison: Comparison) -> Path:
    return comparison.folder / "comparison.md"
