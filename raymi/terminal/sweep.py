"""A sweep as people follow it: what goes on, what is best so far, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.text import Text

from raymi.formatting import mean_text, percent_text
from raymi.statistics import mean_of
from raymi.terminal.console import Table, literal
from raymi.terminal.print_line import print_line, show_table
from raymi.tuning.events import News
from raymi.tuning.results_table import Row
from raymi.tuning.study import Trial
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun

_WORDS = {
    "advanced": "waits for its population",
    "finished": "finished",
    "stopped": "stopped, as others are ahead",
    "paused": "paused",
    "failed": "failed",
}
_WIDE = 120  # columns of a terminal in which settings have a line for themselves


class SweepDisplay:
    """Shows running trials on a terminal, and a line for each that ends everywhere.

    Args: console; sweep; trials that there are already.
    """

    def __init__(self, console: Console, sweep: Sweep, trials: Iterable[Trial]) -> None:
        self.console, self.sweep = console, sweep
        self._epochs = sweep.config_of({}).optim.epochs
        self._ended = {one.number for one in trials if one.state != "running"}
        self._best = max(
            ((one.objectives[-1], one.number) for one in trials if one.objectives), default=None
        )
        self._reached: dict[TrialRun, Measurement] = {}
        self._running: dict[TrialRun, Trial] = {}
        self._made = 0  # epochs in this process
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._live = Live(console=console, transient=True, get_renderable=self._shown)
        self._live.auto_refresh = console.is_terminal

    def __enter__(self) -> SweepDisplay:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def print_line(self, message: str, style: str = "") -> None:
        """Prints a line above what is live; from any thread."""
        print_line(self.console, message, style)

    def news(self, news: News) -> None:
        """Takes what happened to a run; from any thread."""
        with self._lock:
            if news.kind == "began":
                self._running[news.run] = news.trial
            elif news.kind == "measured" and news.measured is not None:
                self._made += 1
                self._reached[news.run] = news.measured
            else:
                self._running.pop(news.run, None)
            if news.trial.state != "running":
                self._ended.add(news.trial.number)
            if news.trial.objectives is not None:
                now = (news.trial.objectives[-1], news.trial.number)
                self._best = now if self._best is None else max(self._best, now)
        if news.kind in _WORDS:
            self._say_end(news)

    def _say_end(self, news: News) -> None:
        settings = " ".join(self.sweep.settings_in_words(news.trial.values))
        what = f"{self._name(news.run)}: {_WORDS[news.kind]}"
        if news.measured is not None:
            what += f" after epoch {news.measured.epoch}: {_accuracies(news.measured)}"
        if news.kind == "failed" and news.trial.reason is not None:
            what += f" ({news.trial.reason})"
        self.print_line(f"{what}  {settings}", style="yellow" if news.kind == "failed" else "")

    def _name(self, run: TrialRun) -> str:
        seed = f" seed {run.seed}" if len(self.sweep.seeds) > 1 else ""
        return f"trial {run.number}{seed}"

    def _shown(self) -> Any:
        with self._lock:
            table = Table.grid(padding=(0, 2))
            for run in sorted(self._running):
                reached = self._reached.get(run)
                table.add_row(
                    self._name(run),
                    "-" if reached is None else f"epoch {reached.epoch}/{self._epochs}",
                    "" if reached is None else _accuracies(reached),
                    " ".join(self.sweep.settings_in_words(self._running[run].values)),
                )
            table.add_row(self._summary())
            return table

    def _summary(self) -> str:
        best = ""
        if self._best is not None:
            best = f" · best {100 * self._best[0]:.1f}% (trial {self._best[1]})"
        done, total = len(self._ended), self.sweep.num_trials
        left = ""
        if self._made:
            each = (time.monotonic() - self._began) / self._made
            made = sum(one.epoch for run, one in self._reached.items() if run in self._running)
            most = (total - done) * self._epochs * len(self.sweep.seeds) - made
            left = f" · at most {most * each / 60:.0f} min left"
        return f"{done}/{total} trials ended{best} · {self._made} epochs{left}"


def print_sweep(console: Console, sweep: Sweep, rows: Sequence[Row]) -> None:
    """The trials, the best ones first; what they reached on validation, and what they set."""
    several = len(sweep.seeds) > 1
    judged = any(row.final for row in rows)
    headings = ["trial", "", "epochs", "robust", "clean"]
    if several:
        headings.insert(4, "to the best")
    if judged:
        headings += ["PGD-40", "AutoAttack"]
    table = Table(title=f"{sweep.name}: accuracies on validation images", box=SIMPLE)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    between = " " if console.width >= _WIDE or not console.is_terminal else "\n"
    for row in rows:
        measured = list(row.by_seed.values())
        cells = [
            str(row.number),
            _state(row, rows),
            str(row.reached.epoch) if row.reached else "-",
            mean_text(mean_of([one.robust for one in measured])),
            mean_text(mean_of([one.clean for one in measured])),
        ]
        if several:
            cells.insert(4, mean_text(row.difference, signed=True))
        if judged:
            final = row.final
            cells.append("-" if final is None else percent_text(final.pgd))
            best = None if final is None else final.autoattack
            cells.append("-" if best is None else percent_text(best))
        settings = [literal(text) for text in sweep.settings_in_words(row.values)]
        table.add_row(*cells, Text(between).join(settings))
    show_table(console, table)
    if several:
        print_line(
            console,
            f"means over the seeds {', '.join(map(str, sweep.seeds))} ± standard errors; "
            "differences of robust accuracy to the first one, seed by seed",
        )


def _state(row: Row, rows: Sequence[Row]) -> str:
    if row.final is not None and row is rows[0]:
        return "winner"
    return "" if row.state == "finished" else row.state


def _accuracies(measured: Measurement) -> str:
    return f"robust {percent_text(measured.robust)}, clean {percent_text(measured.clean)}"
