"""How runs learn: losses and accuracies by epoch, phase after phase, with the best epoch marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raymi.reporting.history import History
from raymi.reporting.look import (
    WIDTH,
    Picture,
    legend_below,
    looking,
    percent,
    percent_text,
    style_of,
    threat_text,
    whole_numbers,
)
from raymi.runs.record import CLASSIFIER, EpochRecord
from raymi.statistics import wilson_interval

_TITLES = {"pretraining": "pretraining by AT", "estimators": "estimators", CLASSIFIER: "classifier"}
_ACCURACIES = {
    "clean_acc": "clean",
    "robust_acc": "robust",
    "averaged/clean_acc": "clean, averaged weights",
    "averaged/robust_acc": "robust, averaged weights",
}
_LOSSES = {"loss": "loss", "loss_adv": "adversarial loss", "loss_estimators": "estimators' loss"}

_AS_TRAINED = " Of the weights as trained; those of averaged weights are in the pictures by run."
_MARKS = {"best": ("*", 15), "best-averaged": ("D", 12), "last": ("o", 11)}
"""Marker and its size in points."""


def learning_picture(history: History) -> Picture | None:
    """Loss on training batches, and clean and robust accuracy on validation, of one run; None
    before its first epoch has ended."""
    if not history.phases:
        return None
    staged = len(history.phases) > 1
    with looking():
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        columns = figure.subplots(2, len(history.phases), squeeze=False)
        for k, (phase, epochs) in enumerate(history.phases.items()):
            losses, accuracies = columns[0, k], columns[1, k]
            losses.set_title(f"{k + 1}. {_TITLES.get(phase, phase)}" if staged else "")
            _draw_losses(losses, epochs)
            if phase == "estimators":  # its classifier stays as it is
                _draw_estimates(accuracies, epochs)
            else:
                _draw_accuracies(accuracies, history, phase, epochs)
                accuracies.set_ylabel("accuracy (validation)")
            accuracies.set_xlabel("epoch")
        columns[0, 0].set_ylabel("loss (training)")
        legend_below(figure, columns[1, -1])
    return Picture(
        "learning",
        f"{history.name}: learning and robustness curves",
        f"Loss on training batches and accuracy on {_images(_num_validated(history))} "
        f"validation images, clean and under PGD-{history.config.validation.steps} "
        f"({_threat(history)}), with 95% intervals as bands. {overfitting_text(history)}",
        _in_words(history),
        figure,
    )


def together_picture(histories: Sequence[History]) -> Picture | None:
    """Clean and robust validation accuracy of the classifiers of several runs, by epoch.

    Args: histories, of runs with the same images and attack; None where fewer than two of them have
        epochs.
    """
    drawn = [one for one in histories if one.phases.get(CLASSIFIER)]
    if len(drawn) < 2:
        return None
    with looking():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        clean, robust = figure.subplots(1, 2, sharex=True)
        for k, history in enumerate(drawn):
            epochs = [one for one in history.phases[CLASSIFIER] if one.val]
            style = style_of(k)
            for axes, metric in ((clean, "clean_acc"), (robust, "robust_acc")):
                axes.plot(
                    [one.number for one in epochs],
                    [one.val[metric] for one in epochs],
                    color=style.color,
                    linestyle=style.line,
                    marker=style.marker,
                    markevery=_every(len(epochs)),
                    label=history.name,
                )
        for axes, title in ((clean, "clean"), (robust, "robust")):
            axes.set(title=title, xlabel="epoch")
            percent(axes.yaxis)
            whole_numbers(axes.xaxis)
        clean.set_ylabel("accuracy (validation)")
        legend_below(figure, clean)
    names = ", ".join(one.name for one in drawn)
    return Picture(
        "learning-together",
        "Validation accuracy of all runs",
        f"Clean and robust accuracy by epoch on the same validation images, under "
        f"PGD-{drawn[0].config.validation.steps} ({_threat(drawn[0])})."
        + (_AS_TRAINED if any(map(_is_averaged, drawn)) else ""),
        f"Validation accuracy by epoch of {names}.",
        figure,
    )


def overfitting_text(history: History) -> str:
    """How much robust validation accuracy the weights as trained lose between their best and their
    last epoch, in words; empty before there are two epochs."""
    epochs = [one for one in history.phases.get(CLASSIFIER, ()) if one.val]
    best = next((one for one in epochs if one.number == history.best_epoch()), None)
    if best is None or len(epochs) < 2:
        return ""
    last = epochs[-1]
    robust, end = best.val["robust_acc"], last.val["robust_acc"]
    if best is last:
        return f"The last epoch, {last.number}, is the best one: {percent_text(robust)} robust."
    of = " of the weights as trained" if _is_averaged(history) else ""
    return (
        f"Robust-overfitting gap{of}: {100 * (robust - end):.1f} points between epoch "
        f"{best.number} ({percent_text(robust)}), the best one, and the last, {last.number} "
        f"({percent_text(end)}); the best one was picked as the highest, so some gap is expected "
        "without any overfitting."
    )


def _draw_losses(axes: Axes, epochs: Sequence[EpochRecord]) -> None:
    numbers = [one.number for one in epochs]
    curves = {name: [one.train.get(name, np.nan) for one in epochs] for name in _LOSSES}
    if curves["loss_adv"] == curves["loss"]:
        del curves["loss_adv"]
    if np.isfinite(curves["loss"]).any():  # the estimators' own is on another scale
        del curves["loss_estimators"]
    there = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    for k, (name, values) in enumerate(there.items()):
        style = style_of(k + 2)
        axes.plot(
            numbers,
            values,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=_every(len(epochs)),
            label=_LOSSES[name],
        )
    whole_numbers(axes.xaxis)
    if there:  # a training may have diverged in its first epoch
        axes.legend()


def _draw_accuracies(
    axes: Axes, history: History, phase: str, epochs: Sequence[EpochRecord]
) -> None:
    validated = [one for one in epochs if one.val]
    numbers = [one.number for one in validated]
    num = _num_validated(history)
    there = [name for name in _ACCURACIES if any(name in one.val for one in validated)]
    for k, name in enumerate(there):
        values = np.array([one.val.get(name, np.nan) for one in validated])
        style = style_of(k)
        axes.plot(
            numbers,
            values,
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markevery=_every(len(numbers)),
            label=_ACCURACIES[name],
        )
        if num and name in ("clean_acc", "robust_acc"):
            bounds = np.array([wilson_interval(round(value * num), num) for value in values])
            low, high = bounds.T
            axes.fill_between(numbers, low, high, color=style.color, alpha=0.15)
    if phase == CLASSIFIER:
        for which, metric in (("best", "robust_acc"), ("best-averaged", "averaged/robust_acc")):
            _mark(axes, history, which, metric, validated)
    percent(axes.yaxis)
    whole_numbers(axes.xaxis)


def _draw_estimates(axes: Axes, epochs: Sequence[EpochRecord]) -> None:
    """What the estimators see of the pairs that they learn from."""
    for k, kind in enumerate(("natural", "adversarial")):
        name = f"mi/{kind}_of_{kind}"
        there = [one for one in epochs if name in one.val]
        style = style_of(k + 4)
        axes.plot(
            [one.number for one in there],
            [one.val[name] for one in there],
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            label=f"{kind} MI",
        )
    axes.set_ylabel("nats (validation)")
    whole_numbers(axes.xaxis)
    axes.legend()


def _mark(
    axes: Axes, history: History, which: str, metric: str, epochs: Sequence[EpochRecord]
) -> None:
    """Hollow marks around the best and the last epoch on the robust curve."""
    best, last = history.best_epoch(which), epochs[-1].number
    for epoch in epochs:
        if metric not in epoch.val or epoch.number not in (best, last):
            continue
        is_best = epoch.number == best
        marker, size = _MARKS[which if is_best else "last"]
        name = which if is_best else which.replace("best", "last")
        if best == last:
            name += ", last"
        axes.plot(
            [epoch.number],
            [epoch.val[metric]],
            linestyle="none",
            marker=marker,
            markersize=size,
            markerfacecolor="none",
            markeredgecolor="black",
            label=f"{name} (epoch {epoch.number})",
        )


def _every(num: int) -> int:
    """So that lines have about ten markers."""
    return max(1, num // 10)


def _is_averaged(history: History) -> bool:
    return any("averaged/robust_acc" in one.val for one in history.phases.get(CLASSIFIER, ()))


def _num_validated(history: History) -> int | None:
    """Validation images that accuracies are of; None where it is not known."""
    num: int | None = history.start.get("data", {}).get("sizes", {}).get("val")
    most = history.config.validation.max_samples
    return num if most is None or num is None else min(num, most)


def _images(num: int | None) -> str:
    return "held-out" if num is None else str(num)


def _threat(history: History) -> str:
    attack = history.config.attack
    return threat_text(attack.norm, attack.eps)


def _in_words(history: History) -> str:
    phases = ", then ".join(f"{name} ({len(e)} epochs)" for name, e in history.phases.items())
    return f"Learning curves of {history.name}: {phases}. {overfitting_text(history)}"
