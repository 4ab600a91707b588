"""A sweep as people follow it: what goes on, what is best so far, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raymi.sweeps.study import Trial
from raymi.sweeps.sweep import Measured, Sweep

_WORDS = {
    "finished": "finished",
    "stopped": "stopped, as others are ahead",
    "paused": "paused",
    "failed": "failed",
}


class SweepDisplay:
    """Shows running trials on a terminal, and a line for each that ends everywhere.

    Args: console; sweep; trials that there are already.
    """

    def __init__(self, console: Console, sweep: Sweep, trials: Iterable[Trial]) -> None:
        self.console, self.sweep = console, sweep
        self._epochs = sweep.config_of({}).optim.epochs
        self._ended = {one.number: one for one in trials if one.state != "running"}
        self._reached: dict[int, Measured] = {}
        self._running: dict[int, Trial] = {}
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

    def say(self, message: str, style: str = "") -> None:
        """Prints a line above what is live; from any thread."""
        self.console.print(Text(message, style), soft_wrap=True)

    def news(self, kind: str, trial: Trial, measured: Measured | None) -> None:
        """Takes what happened to a trial; from any thread."""
        with self._lock:
            if kind == "began":
                self._running[trial.number] = trial
            elif kind == "measured" and measured is not None:
                self._made += 1
                self._reached[trial.number] = measured
            else:
                self._running.pop(trial.number, None)
                if kind != "paused":
                    self._ended[trial.number] = trial
        if kind in _WORDS:
            self._say_end(kind, trial, measured)

    def _say_end(self, kind: str, trial: Trial, measured: Measured | None) -> None:
        settings = " ".join(self.sweep.settings_in_words(trial))
        what = f"trial {trial.number}: {_WORDS[kind]}"
        if measured is not None:
            what += f" after epoch {measured.epoch}: {_accuracies(measured)}"
        if trial.reason is not None:
            what += f" ({trial.reason})"
        self.say(f"{what}  {settings}", style="yellow" if kind == "failed" else "")

    def _shown(self) -> Any:
        with self._lock:
            table = Table.grid(padding=(0, 2))
            for number in sorted(self._running):
                reached = self._reached.get(number)
                table.add_row(
                    f"trial {number}",
                    "-" if reached is None else f"epoch {reached.epoch}/{self._epochs}",
                    "" if reached is None else _accuracies(reached),
                    " ".join(self.sweep.settings_in_words(self._running[number])),
                )
            table.add_row(self._summary())
            return table

    def _summary(self) -> str:
        known = [(m.robust, n) for n, m in self._reached.items()]
        best = f" · best {100 * max(known)[0]:.1f}% (trial {max(known)[1]})" if known else ""
        done, total = len(self._ended), self.sweep.num_trials
        left = ""
        if self._made:
            each = (time.monotonic() - self._began) / self._made
            most = (total - done) * self._epochs - sum(
                m.epoch for n, m in self._reached.items() if n in self._running
            )
            left = f" · at most {most * each / 60:.0f} min left"
        return f"{done}/{total} trials ended{best} · {self._made} epochs{left}"


def print_sweep(console: Console, sweep: Sweep, trials: Iterable[Trial], best: set[int]) -> None:
    """The trials, the best ones first; what they set, and what they reached on validation."""
    rows = [(trial, sweep.measured(trial.number)) for trial in trials]
    rows.sort(key=lambda row: (row[0].number not in best, -(row[1][-1].robust if row[1] else -1)))
    keys = sorted({name for trial, _ in rows for name in trial.values})
    table = Table(title=f"{sweep.name}: accuracies on validation")
    for heading in ("trial", "", "epochs", "robust", "clean"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key in keys:
        table.add_column(key.removeprefix("mi."), justify="right", overflow="fold")
    for trial, reached in rows:
        last = reached[-1] if reached else None
        table.add_row(
            str(trial.number),
            "best" if trial.number in best else "" if trial.state == "finished" else trial.state,
            str(last.epoch) if last else "-",
            f"{100 * last.robust:.1f}%" if last else "-",
            f"{100 * last.clean:.1f}%" if last else "-",
            *(_value(trial.values.get(key)) for key in keys),
        )
    console.print(table)


def _accuracies(measured: Measured) -> str:
    return f"robust {100 * measured.robust:.1f}%, clean {100 * measured.clean:.1f}%"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
