"""An evaluation as people follow it, and the tables that close it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TaskID

from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.finding import Finding, in_short
from raymi.evaluation.report import Difference, Report, TransferMatrix
from raymi.evaluation.summary import AttackCount, Robustness
from raymi.formatting import number_text, threat_text
from raymi.statistics import Number
from raymi.terminal.console import LiteralColumn, Table, progress_bar
from raymi.terminal.print_line import print_line

CHECKS = "signs of false robustness"


class EvaluationDisplay:
    """Shows each attack of a classifier, on a terminal as a bar with the time left, and as a line
    when it is done; and at once each finding that is a reason to doubt.

    Args: console.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._workers, self._began = 1, time.monotonic()
        self.bar = progress_bar(
            console,
            LiteralColumn("{task.description}"),
            BarColumn(bar_width=20),
            LiteralColumn("{task.completed}/{task.total} blocks"),
            LiteralColumn("{task.fields[detail]}"),
        )
        """Live bars; the fields of their tasks hold what is shown."""
        self._attacks: dict[str, _Attack] = {}

    def __enter__(self) -> EvaluationDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def print_line(self, message: str, style: str = "") -> None:
        """Prints a line above the bars; from any thread."""
        print_line(self.console, message, style)

    def attack_with(self, workers: int) -> None:
        """The workers are there that share the blocks."""
        self._workers, self._began = workers, time.monotonic()

    def end(self) -> None:
        """All steps are made."""
        took = time.monotonic() - self._began
        workers = f"{self._workers} worker{'s' if self._workers > 1 else ''}"
        self.print_line(f"attacked for {took:.1f} s on {workers}")

    def begin(self, name: str, schedule: Schedule, main: Sequence[Ensemble]) -> None:
        """A classifier's turn: `main` are the ensembles that it is reported with, the others of the
        schedule belong to the checks."""
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self._attacks = {}
        self._name, self._main = name, {CLEAN, *(ensemble.name for ensemble in main)}
        for (ensemble, attack), blocks in schedule.steps_by_attack().items():
            label = self._label(ensemble, attack)
            if label not in self._attacks:
                task = self.bar.add_task(label, total=0, detail="")
                self._attacks[label] = _Attack(task)
            self._attacks[label].blocks += blocks
            self.bar.update(self._attacks[label].task, total=self._attacks[label].blocks)

    def step(self, step: Step, outcome: Outcome, known: bool) -> None:
        """A step is done; `known`: the ledger had it."""
        label = self._label(step.ensemble, step.attack)
        attack = self._attacks[label]
        attack.done += 1
        attack.given += len(outcome.samples)
        attack.broken += int(outcome.broken.sum())
        attack.known += known
        if not known:
            attack.made += 1
            attack.seconds += outcome.seconds
        if label == CHECKS:
            detail = ""
        elif label == CLEAN:
            detail = f"{attack.broken} of {attack.given} misclassified"
        else:
            detail = f"{attack.broken} of {attack.given} broken"
        left = attack.left(self._workers)
        self.bar.update(
            attack.task, completed=attack.done, detail=" · ".join(filter(None, (detail, left)))
        )
        if attack.done == attack.blocks:
            again = f", {attack.known} of {attack.blocks} blocks from the ledger"
            took = f"{attack.seconds:.0f} s of work"
            known_text = again if attack.known else ""
            said = f": {detail}" if detail else " looked for"
            self.print_line(f"{self._name} · {label}{said}, {took}{known_text}")

    def finding(self, finding: Finding) -> None:
        """A check's result, where it is a reason to doubt; the others are in the report."""
        if finding.suspicious:
            self.print_line(f"doubtful: {finding.check}: {finding.text}", style="yellow")

    def _label(self, ensemble: str, attack: str) -> str:
        if ensemble not in self._main:
            return CHECKS
        return attack if ensemble == attack else f"{ensemble} · {attack}"


@dataclass
class _Attack:
    task: TaskID
    blocks: int = 0
    done: int = 0
    given: int = 0
    broken: int = 0
    known: int = 0
    made: int = 0
    seconds: float = 0.0

    def left(self, workers: int) -> str:
        """Time of this attack on the blocks that are left, as it was on those before."""
        if not self.made or self.done == self.blocks:
            return ""
        seconds = int((self.blocks - self.done) * self.seconds / self.made / workers)
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02} left"


def print_report(console: Console, report: Report) -> None:
    """Accuracies with their intervals, what each attack did, and what is doubtful."""
    threat = threat_text(**report.protocol["threat"])
    print_line(console, f"{report.name}: {report.num} images of {report.data}, {threat}")
    table = Table()
    table.add_column("attack", no_wrap=True)
    for heading in ("accuracy", "95% interval", "right", "broken", "work"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in report.results:
        low, high = result.interval
        (*_, last) = result.attacks
        whole = len(result.attacks) == 1
        table.add_row(
            result.name,
            f"{100 * result.accuracy:.1f}%",
            f"{100 * low:.1f}-{100 * high:.1f}%",
            f"{result.right} of {result.num}",
            _broken(last) if whole else "",
            f"{sum(count.seconds for count in result.attacks):.0f} s",
        )
        if not whole:
            for count in result.attacks:
                table.add_row(
                    f"  {count.attack}", "", "", "", _broken(count), f"{count.seconds:.0f} s"
                )
    console.print(table)
    doubtful = report.suspicions
    for finding in doubtful:
        print_line(console, f"doubtful: {finding.check}: {finding.text}", "yellow")
    if report.findings and not doubtful:
        print_line(console, in_short(report.findings))


def print_differences(console: Console, found: Sequence[Difference]) -> None:
    """Pairs of classifiers on the same samples, with McNemar's test."""
    table = Table(title="differences on the same samples (McNemar's test, exact)")
    table.add_column("attack", no_wrap=True)
    for heading in ("first - second", "difference", "only first", "only second", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            one.attack,
            f"{one.first} - {one.second}",
            f"{100 * one.found.difference:+.1f}%",
            str(one.found.only_first),
            str(one.found.only_second),
            f"{one.found.p_value:.2g}",
        )
    console.print(table)


def print_transfer(console: Console, matrix: TransferMatrix) -> None:
    """The transfer matrix: accuracies of targets (columns) on the samples of surrogates (rows)."""
    table = Table(title=f"transfer of {matrix.attack}: accuracy of each target, 95% interval")
    table.add_column("images made on", no_wrap=True)
    for target in matrix.targets:
        table.add_column(target, justify="right", no_wrap=True)
    rows = [("(clean)", matrix.clean), *matrix.surrogates.items()]
    for label, results in [*rows, ("(the target itself)", matrix.white_box)]:
        table.add_row(label, *map(_with_interval, results))
    console.print(table)


def _with_interval(result: Robustness | None) -> str:
    if result is None:
        return "-"
    return number_text(Number(result.accuracy, *result.interval))


def _broken(count: AttackCount) -> str:
    return f"{count.broken} of {count.given}"
