"""A run as people follow it: a live line on a terminal, one plain line for each epoch."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from raymi.config import Config

Event = dict[str, Any]

_HEADER = (
    f"{'epoch':>9}  {'loss':>7}  {'loss_adv':>8}  {'MI nat':>7}  {'MI adv':>7}  "
    f"{'val clean':>9}  {'val robust':>10}  {'images/s':>8}"
)


class ProgressDisplay:
    """Prints what the journal of a run says; MI in nats, accuracies in percent.

    On a terminal a bar shows phase, epoch, step, losses, MI, throughput and the time left; where
    stdout is no terminal there is one line for each epoch and nothing else.
    """

    def __init__(self, console: Console, config: Config) -> None:
        self.console = console
        self.epochs = config.optim.epochs
        self._header_printed = False
        self._clock = _Clock()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting Ray and the workers", total=None, detail="")

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        self.console.print(message, highlight=False, soft_wrap=True)

    def phase(self, description: str) -> None:
        """Shows what is going on where no event says so."""
        self._bar.update(self._task, description=description, total=None, detail="")

    def event(self, event: Event) -> None:
        """Shows one event of the journal."""
        show = getattr(self, f"_on_{event['kind']}", None)
        if show is not None:
            show(event)

    def _on_start(self, event: Event) -> None:
        data, sizes = event["data"], event["data"]["sizes"]
        parameters = ", ".join(f"{k} {v / 1e6:.3g} M" for k, v in event["parameters"].items())
        workers = f"{event['workers']} worker{'s' if event['workers'] > 1 else ''}"
        self.say(
            f"{data['name']}: {sizes['train']} train, {sizes['val']} validation, "
            f"{sizes['test']} test images of {data['image_size']} pixels · parameters: "
            f"{parameters} · {workers} on {event['device']}"
        )
        if event["global_step"] > 0:
            self.say(f"continuing after epoch {event['epoch']}, step {event['step']}")
        self._clock.restart(event["global_step"])

    def _on_step(self, event: Event) -> None:
        total = self.epochs * event["steps_per_epoch"]
        metrics = event["metrics"]
        natural, adversarial = metrics.get("mi/natural"), metrics.get("mi/adversarial")
        mi = "" if natural is None else f" · MI nat {natural:.2f}"
        mi += "" if adversarial is None else f" · MI adv {adversarial:.2f}"
        left = self._clock.left(event["global_step"], total)
        self._bar.update(
            self._task,
            description=f"training · epoch {event['epoch'] + 1}/{self.epochs}",
            total=total,
            completed=event["global_step"],
            detail=f"step {event['step']}/{event['steps_per_epoch']} · "
            f"loss {metrics['loss']:.3f}{mi} · {event['images_per_s']:.0f} images/s · {left} left",
        )

    def _on_epoch(self, event: Event) -> None:
        if not self._header_printed:
            self.say(_HEADER)
            self._header_printed = True
        train, val = event["train"], event["val"]
        best = "  best" if event["is_best"] else ""
        self.say(
            f"{event['epoch']:>4}/{self.epochs:<4}  "
            f"{train['loss']:>7.4f}  {train['loss_adv']:>8.4f}  "
            f"{_number(train.get('mi/natural')):>7}  {_number(train.get('mi/adversarial')):>7}  "
            f"{_percent(val.get('clean_acc')):>9}  {_percent(val.get('robust_acc')):>10}  "
            f"{event['images_per_s']:>8.0f}{best}"
        )

    def _on_evaluating(self, event: Event) -> None:
        what = {"validate": "validating", "best": "testing the best model"}.get(
            event["what"], "testing the last model"
        )
        self._bar.update(
            self._task, description=what, total=event["of"], completed=event["done"], detail=""
        )


class _Clock:
    """Estimates the time left from the steps done since it was started."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        self._step, self._since = step, time.monotonic()

    def left(self, step: int, total: int) -> str:
        done = step - self._step
        if done <= 0:
            return "?"
        seconds = int((time.monotonic() - self._since) / done * (total - step))
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{float(value):.3f}"
