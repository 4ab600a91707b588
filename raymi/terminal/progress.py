"""Progress of a run: a live line on a terminal, one plain line for each epoch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn
from rich.text import Text

from raymi.config import Config
from raymi.formatting import threat_text
from raymi.reporting.accuracies import method_name
from raymi.terminal.console import LiteralColumn
from raymi.terminal.print_line import print_lines

Event = dict[str, Any]

_HEADER = (
    f"{'epoch':>9}  {'loss':>7}  {'loss_adv':>8}  {'MI nat':>7}  {'MI adv':>7}  "
    f"{'val clean':>9}  {'val robust':>10}  {'images/s':>8}"
)
_PHASES = {
    "pretraining": "pretraining by AT",
    "estimators": "training the estimators",
    "classifier": "training",
}
_SHOWN = {
    "loss": "loss",
    "loss_adv": "adv",
    "loss_mi": "mi",
    "loss_estimators": "estimators",
    "mi/natural": "MI nat",
    "mi/adversarial": "MI adv",
}


_PROBED = {
    "mi/natural_of_natural": "I_N(h(x))",
    "mi/natural_of_adversarial": "I_N(h(x_adv))",
    "mi/adversarial_of_natural": "I_A(h(x))",
    "mi/adversarial_of_adversarial": "I_A(h(x_adv))",
}


class ProgressDisplay:
    """Callback that prints the events of a run; MI in nats, accuracies in percent.

    A log file gets one line for each epoch. A terminal also gets a bar with phase, epoch, step,
    throughput and time left, and a line with losses, MI and the last validation.
    """

    def __init__(self, console: Console, config: Config) -> None:
        self.console, self.config = console, config
        self._phases = {"classifier": config.optim.epochs}
        self._steps_per_epoch = 1
        self._phase_shown: str | None = None
        self._started = False
        self._time_left = TimeLeft()
        self.bar = _Bar(
            SpinnerColumn(),
            LiteralColumn("{task.description}"),
            BarColumn(bar_width=20),
            LiteralColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("starting Ray and the workers", total=None, detail="")

    def __enter__(self) -> ProgressDisplay:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def print_line(self, message: str, style: str = "") -> None:
        """Prints lines above the bar; from any thread."""
        print_lines(self.console, message, style)

    def phase(self, description: str) -> None:
        """Shows a phase without progress."""
        self.bar.update(self._task, description=description, total=None, detail="")
        self.bar.measured.clear()

    def event(self, event: Event) -> None:
        """Shows one event of the journal."""
        show = getattr(self, f"_on_{event['kind']}", None)
        if show is not None:
            show(event)

    def _on_start(self, event: Event) -> None:
        if self._started:
            self.print_line("workers restarted")
        self._started = True
        self._phases, self._steps_per_epoch = event["phases"], event["steps_per_epoch"]
        data, sizes = event["data"], event["data"]["sizes"]
        networks = {f"classifier {self.config.model.name}": event["parameters"]["classifier"]}
        networks |= {k: v for k, v in event["parameters"].items() if k != "classifier"}
        parameters = ", ".join(f"{k} {_count(v)} parameters" for k, v in networks.items())
        workers = f"{event['workers']} worker{'s' if event['workers'] > 1 else ''}"
        side, attack = data["image_size"], self.config.attack
        self.print_line(
            f"{data['name']}: {sizes['train']} train, {sizes['val']} validation, "
            f"{sizes['test']} test images ({side}x{side})"
        )
        self.print_line(
            f"{method_name(self.config)}: {threat_text(attack.norm, attack.eps)}, "
            f"{parameters}, {workers} on {event['device']}"
        )
        self.print_line(
            "MI nat, MI adv: natural and adversarial MI in nats; val: accuracy on validation "
            f"images, robust under PGD-{self.config.validation.steps}"
        )
        if event["global_step"] > 0:
            phase = f" of {event['phase']}" if len(self._phases) > 1 else ""
            self.print_line(f"continuing after epoch {event['epoch']}, step {event['step']}{phase}")
        self._time_left.restart(event["global_step"])

    def _on_step(self, event: Event) -> None:
        total = sum(self._phases.values()) * self._steps_per_epoch
        phase = event["phase"]
        self.bar.measured["step"] = " · ".join(
            f"{label} {_number(event['metrics'][name])}"
            for name, label in _SHOWN.items()
            if name in event["metrics"]
        )
        left = self._time_left.left(event["global_step"], total)
        self.bar.update(
            self._task,
            description=f"{_PHASES[phase]} · epoch {event['epoch'] + 1}/{self._phases[phase]}",
            total=total,
            completed=event["global_step"],
            detail=f"step {event['step']}/{self._steps_per_epoch} · "
            f"{event['images_per_s']:.0f} images/s · {left} left",
        )

    def _on_epoch(self, event: Event) -> None:
        phase = event["phase"]
        if phase != self._phase_shown:
            if len(self._phases) > 1:
                self.print_line(_PHASES[phase])
            self.print_line(_HEADER)
            self._phase_shown = phase
        train, val = event["train"], event["val"]
        clean, robust = _percent(val.get("clean_acc")), _percent(val.get("robust_acc"))
        if val:
            self.bar.measured["val"] = f"val clean {clean}, robust {robust}"
        loss = train.get("loss", train.get("loss_estimators"))
        best = "  best" if event["is_best"] else ""
        if "averaged/robust_acc" in val:
            averaged = [_percent(val[f"averaged/{k}"]) for k in ("clean_acc", "robust_acc")]
            best += f"  averaged {' '.join(averaged)}"
            best += " best" if "best-averaged" in event["better"] else ""
        self.print_line(
            f"{event['epoch']:>4}/{self._phases[phase]:<4}  "
            f"{_number(loss):>7}  {_number(train.get('loss_adv')):>8}  "
            f"{_number(_mi(train, 'natural')):>7}  {_number(_mi(train, 'adversarial')):>7}  "
            f"{clean:>9}  {robust:>10}  {event['images_per_s']:>8.0f}{best}"
        )

    def _on_probe(self, event: Event) -> None:
        estimates = event["estimates"]
        values = ", ".join(
            f"{label} {_number(estimates.get(name))} ({_number(estimates.get(f'{name}_shuffled'))})"
            for name, label in _PROBED.items()
        )
        self.print_line(
            f"fresh probes of the {event['which']} model, in nats (with shuffled outputs): {values}"
        )

    def _on_stopping(self, event: Event) -> None:
        self.print_line(f"{event['signal']}: writing a checkpoint; press Ctrl-C again to stop now")

    def _on_uploading(self, event: Event) -> None:
        self.phase("uploading run and models to MLflow")

    def _on_warning(self, event: Event) -> None:
        self.print_line(f"warning: {event['message']}", style="yellow")

    def _on_evaluating(self, event: Event) -> None:
        what = {"validate": "validating", "probe": "probing its mutual information"}.get(
            event["what"], f"testing the {event['what']} model"
        )
        self.bar.update(
            self._task,
            description=what,
            total=event["of"],
            completed=event["done"],
            detail=f"{event['done']}/{event['of']} images",
        )


class _Bar(Progress):
    """Progress bar with a line of measurements under it."""

    def __init__(self, *columns: Any, **options: Any) -> None:
        self.measured: dict[str, str] = {}
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.measured:
            line = "  " + " · ".join(self.measured.values())
            yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")


class TimeLeft:
    """Estimate of the time left from the pace since the start of this process."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measures the pace from a step on, and from now."""
        self._step, self._since = step, time.monotonic()

    def left(self, step: int, total: int) -> str:
        """Returns hours, minutes and seconds until step `total`; a question mark without a pace."""
        done = step - self._step
        if done <= 0:
            return "?"
        seconds = int((time.monotonic() - self._since) / done * (total - step))
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _mi(metrics: dict[str, float], kind: str) -> float | None:
    """Returns an estimator's MI, of its own outputs or, if frozen, of adversarial outputs.

    Without estimators, the bound on the MI of adversarial outputs.
    """
    bound = {"natural": "mi/natural_lower", "adversarial": "mi/adversarial_upper"}[kind]
    names = (f"mi/{kind}", f"mi/{kind}_of_adversarial", bound)
    return next((metrics[name] for name in names if name in metrics), None)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * float(value):.1f}%"


def _count(number: int) -> str:
    """Returns a number of parameters, such as 14.8 k."""
    unit, size = next((u, s) for u, s in (("M", 1e6), ("k", 1e3), ("", 1)) if number >= s or s == 1)
    return f"{number / size:.3g} {unit}".strip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{float(value):.3f}"
