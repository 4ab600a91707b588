"""Terminal display of a sweep: running trials, best result so far, time left, final table."""

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
from raymi.tuning.events import TrialEvent
from raymi.tuning.results_table import Row
from raymi.tuning.study import Trial
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun

_TEXTS = {
    "advanced": "completed its generation",
    "finished": "finished",
    "stopped": "stopped, as others are ahead",
    "paused": "paused",
    "failed": "failed",
}
_WIDE = 120  # columns of a terminal that shows all settings in one line


class SweepDisplay:
    """Display of running trials on a terminal, with a line for each that ends on any console.

    Args:
        console: Console to print to.
        sweep: The sweep.
        trials: Its existing trials.
    """

    def __init__(self, console: Console, sweep: Sweep, trials: Iterable[Trial]) -> None:
        self.console, self.sweep = console, sweep
        self._epochs = sweep.config_of({}).optim.epochs
        self._ended = {one.number for one in trials if one.state != "running"}
        self._best = max(
            ((one.objectives[-1], one.number) for one in trials if one.objectives), default=None
        )
        self._best_by_run: dict[TrialRun, Measurement] = {}
        self._running: dict[TrialRun, Trial] = {}
        self._num_epochs = 0  # of this process
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._live = Live(console=console, transient=True, get_renderable=self._render)
        self._live.auto_refresh = console.is_terminal

    def __enter__(self) -> SweepDisplay:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def print_line(self, message: str, style: str = "") -> None:
        """Prints a line above the live display; from any thread."""
        print_line(self.console, message, style)

    def on_trial_event(self, event: TrialEvent) -> None:
        """Updates the display; from any thread."""
        with self._lock:
            if event.kind == "began":
                self._running[event.run] = event.trial
            elif event.kind == "measured" and event.measurement is not None:
                self._num_epochs += 1
                self._best_by_run[event.run] = event.measurement
            else:
                self._running.pop(event.run, None)
            if event.trial.state != "running":
                self._ended.add(event.trial.number)
            if event.trial.objectives is not None:
                result = (event.trial.objectives[-1], event.trial.number)
                self._best = result if self._best is None else max(self._best, result)
        if event.kind in _TEXTS:
            self._print_end(event)

    def _print_end(self, event: TrialEvent) -> None:
        settings = " ".join(self.sweep.settings_words(event.trial.values))
        text = f"{self._name(event.run)}: {_TEXTS[event.kind]}"
        if event.measurement is not None:
            text += f" after epoch {event.measurement.epoch}: {_accuracies(event.measurement)}"
        if event.kind == "failed" and event.trial.reason is not None:
            text += f" ({event.trial.reason})"
        self.print_line(f"{text}  {settings}", style="yellow" if event.kind == "failed" else "")

    def _name(self, run: TrialRun) -> str:
        seed = f" seed {run.seed}" if len(self.sweep.seeds) > 1 else ""
        return f"trial {run.number}{seed}"

    def _render(self) -> Any:
        with self._lock:
            table = Table.grid(padding=(0, 2))
            for run in sorted(self._running):
                best = self._best_by_run.get(run)
                table.add_row(
                    self._name(run),
                    "-" if best is None else f"epoch {best.epoch}/{self._epochs}",
                    "" if best is None else _accuracies(best),
                    " ".join(self.sweep.settings_words(self._running[run].values)),
                )
            table.add_row(self._summary())
            return table

    def _summary(self) -> str:
        best = ""
        if self._best is not None:
            best = f" · best {100 * self._best[0]:.1f}% (trial {self._best[1]})"
        done, total = len(self._ended), self.sweep.num_trials
        left = ""
        if self._num_epochs:
            seconds = (time.monotonic() - self._start) / self._num_epochs
            trained = sum(
                one.epoch for run, one in self._best_by_run.items() if run in self._running
            )
            epochs = (total - done) * self._epochs * len(self.sweep.seeds) - trained
            left = f" · at most {epochs * seconds / 60:.0f} min left"
        return f"{done}/{total} trials ended{best} · {self._num_epochs} epochs{left}"


def print_sweep(console: Console, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Prints the trials with validation accuracies and settings, the best ones first."""
    several = len(sweep.seeds) > 1
    has_finalists = any(row.final for row in rows)
    headings = ["trial", "", "epochs", "robust", "clean"]
    if several:
        headings.insert(4, "vs. best")
    if has_finalists:
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
            str(row.measurement.epoch) if row.measurement else "-",
            mean_text(mean_of([one.robust for one in measured])),
            mean_text(mean_of([one.clean for one in measured])),
        ]
        if several:
            cells.insert(4, mean_text(row.difference, signed=True))
        if has_finalists:
            final = row.final
            cells.append("-" if final is None else percent_text(final.pgd))
            autoattack = None if final is None else final.autoattack
            cells.append("-" if autoattack is None else percent_text(autoattack))
        settings = [literal(text) for text in sweep.settings_words(row.values)]
        table.add_row(*cells, Text(between).join(settings))
    show_table(console, table)
    if several:
        print_line(
            console,
            f"means over the seeds {', '.join(map(str, sweep.seeds))} ± standard errors; "
            "vs. best: paired differences of robust accuracy to the first trial",
        )


def _state(row: Row, rows: Sequence[Row]) -> str:
    if row.final is not None and row is rows[0]:
        return "winner"
    return "" if row.state == "finished" else row.state


def _accuracies(measured: Measurement) -> str:
    return f"robust {percent_text(measured.robust)}, clean {percent_text(measured.clean)}"
