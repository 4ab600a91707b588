"""Progress display and result tables of an evaluation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TaskID

from raymi.attacks.suites import CORRUPTION, SEVERITIES, Ensemble
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.callback import EvaluationCallback
from raymi.evaluation.finding import Finding, in_short
from raymi.evaluation.report import Difference, Report, TransferMatrix
from raymi.evaluation.summary import AttackCount, Robustness
from raymi.formatting import interval_text, number_text, percent_text, threat_text
from raymi.statistics import Number
from raymi.terminal.console import LiteralColumn, Table, progress_bar
from raymi.terminal.print_line import print_line, table_of

CHECKS = "signs of false robustness"


class EvaluationDisplay(EvaluationCallback):
    """Callback that displays an evaluation.

    Each attack has a bar with the time left, on a terminal only, and a line at its end. Suspicious
    findings are printed immediately.

    Args:
        console: where it prints.
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
        """Live bars."""
        self._attacks: dict[str, _Attack] = {}

    def __enter__(self) -> EvaluationDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def on_message(self, message: str) -> None:
        """Prints a line above the bars; from any thread."""
        print_line(self.console, message)

    def on_workers(self, num_workers: int) -> None:
        """Starts the clock."""
        self._workers, self._began = num_workers, time.monotonic()

    def on_end(self) -> None:
        """Prints the duration."""
        took = time.monotonic() - self._began
        workers = f"{self._workers} worker{'s' if self._workers > 1 else ''}"
        self.on_message(f"attacked for {took:.1f} s on {workers}")

    def on_model(self, name: str, schedule: Schedule, main: Sequence[Ensemble]) -> None:
        """Adds the bars of a classifier; ensembles that are not in `main` share one."""
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self._attacks = {}
        self._name, self._main = name, {CLEAN: CLEAN}
        for one in main:  # details of a mean share its bar
            self._main[one.name] = one.means[-1] if one.means else one.name
        for (ensemble, attack), blocks in schedule.steps_by_attack().items():
            label = self._label(ensemble, attack)
            if label not in self._attacks:
                task = self.bar.add_task(label, total=0, detail="")
                self._attacks[label] = _Attack(task)
            self._attacks[label].blocks += blocks
            self.bar.update(self._attacks[label].task, total=self._attacks[label].blocks)

    def on_step(self, step: Step, outcome: Outcome, cached: bool) -> None:
        """Advances the bar of a step's attack."""
        label = self._label(step.ensemble, step.attack)
        attack = self._attacks[label]
        attack.done += 1
        attack.given += len(outcome.samples)
        attack.broken += int(outcome.broken.sum())
        attack.cached += cached
        if not cached:
            attack.run += 1
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
            cached_text = f", {attack.cached} of {attack.blocks} blocks from disk"
            text = f": {detail}" if detail else " checked"
            self.on_message(
                f"{self._name} · {label}{text}, {attack.seconds:.0f} s of work"
                + (cached_text if attack.cached else "")
            )

    def on_finding(self, finding: Finding) -> None:
        """Prints a suspicious finding; the others are in the report."""
        if finding.suspicious:
            print_line(self.console, f"doubtful: {finding.check}: {finding.text}", "yellow")

    def _label(self, ensemble: str, attack: str) -> str:
        if ensemble not in self._main:
            return CHECKS
        if (mean := self._main[ensemble]) != ensemble:
            return mean
        return attack if ensemble == attack else f"{ensemble} · {attack}"


@dataclass
class _Attack:
    task: TaskID
    blocks: int = 0
    done: int = 0
    given: int = 0
    broken: int = 0
    cached: int = 0
    run: int = 0
    seconds: float = 0.0

    def left(self, workers: int) -> str:
        """Estimates the time left from the blocks so far."""
        if not self.run or self.done == self.blocks:
            return ""
        seconds = int((self.blocks - self.done) * self.seconds / self.run / workers)
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02} left"


def print_report(console: Console, report: Report) -> None:
    """Prints accuracies with intervals, counts of each attack, and suspicious findings."""
    threat = threat_text(**report.protocol["threat"])
    print_line(console, f"{report.name}: {report.num} images of {report.data}, {threat}")
    rows = [("attack", "accuracy", "95% interval", "right", "broken", "work")]
    corruptions = [result for result in report.results if result.name.startswith(CORRUPTION)]
    for result in report.results:
        if result in corruptions:
            continue
        single = len(result.attacks) == 1
        rows.append(
            (
                result.name,
                percent_text(result.accuracy),
                f"{interval_text(*result.interval)}%",
                f"{result.right} of {result.num}",
                _broken(result.attacks[0]) if single else "",
                f"{sum(count.seconds for count in result.attacks):.0f} s",
            )
        )
        if not single:
            rows += [
                (f"  {count.attack}", "", "", "", _broken(count), f"{count.seconds:.0f} s")
                for count in result.attacks
            ]
    console.print(table_of(rows))
    if corruptions:
        console.print(_corruption_table(corruptions))
    for result in report.results:
        if result.note:
            print_line(console, result.note)
    for finding in report.suspicions:
        print_line(console, f"doubtful: {finding.check}: {finding.text}", "yellow")
    if report.findings and not report.suspicions:
        print_line(console, in_short(report.findings))


def _corruption_table(results: Sequence[Robustness]) -> Table:
    """Returns a table of accuracies: corruptions by severities, and their means with interval."""
    severities = [str(severity) for severity in range(1, SEVERITIES + 1)]
    rows = [("corruption", *severities, "mean", "95% interval")]
    by_name = {result.name: result for result in results}
    for name, mean in by_name.items():
        if mean.detail:
            continue
        each = [by_name[f"{name}-{severity}"].accuracy for severity in severities]
        cells = map(percent_text, (*each, mean.accuracy))
        rows.append((name.removeprefix(CORRUPTION), *cells, f"{interval_text(*mean.interval)}%"))
    return table_of(rows, title="accuracy by corruption and severity")


def print_differences(console: Console, differences: Sequence[Difference]) -> None:
    """Prints pairs of classifiers on the same samples, with McNemar's test."""
    rows = [("attack", "first - second", "difference", "only first", "only second", "p")]
    rows += [
        (
            one.attack,
            f"{one.first} - {one.second}",
            f"{100 * one.pairs.difference:+.1f}%",
            str(one.pairs.only_first),
            str(one.pairs.only_second),
            f"{one.pairs.p_value:.2g}",
        )
        for one in differences
    ]
    title = "differences on the same samples (McNemar's test, exact)"
    console.print(table_of(rows, title=title))


def print_transfer(console: Console, matrix: TransferMatrix) -> None:
    """Prints accuracies of targets (columns) on the samples of surrogates (rows)."""
    results = {
        "(clean)": matrix.clean,
        **matrix.surrogates,
        "(the target itself)": matrix.white_box,
    }
    rows = [("images made on", *matrix.targets)]
    rows += [(label, *map(_with_interval, row)) for label, row in results.items()]
    title = f"transfer of {matrix.attack}: accuracy of each target, 95% interval"
    console.print(table_of(rows, title=title))


def _with_interval(result: Robustness | None) -> str:
    if result is None:
        return "-"
    return number_text(Number(result.accuracy, *result.interval))


def _broken(count: AttackCount) -> str:
    return f"{count.broken} of {count.given}"
