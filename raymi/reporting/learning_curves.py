"""Learning curves: losses and accuracies by epoch and phase, with the best epoch marked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raymi.formatting import percent_text, threat_text
from raymi.reporting.history import History
from raymi.reporting.style import (
    STYLES,
    WIDTH,
    Picture,
    Styles,
    epoch_axis,
    legend_below,
    percent_axis,
    plot_curve,
    report_style,
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
_LOSSES = {"loss": "loss", "loss_adv": "adversarial loss", "loss_estimators": "estimator loss"}
_MARKS = {"best": ("*", 15), "best-averaged": ("D", 12), "last": ("o", 11)}
"""Marker and its size in points."""


def learning_picture(history: History) -> Picture | None:
    """Draws training loss and validation accuracy of a run by epoch; None before its first one."""
    if not history.phases:
        return None
    staged = len(history.phases) > 1
    with report_style():
        figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
        columns = figure.subplots(2, len(history.phases), squeeze=False)
        for k, (phase, epochs) in enumerate(history.phases.items()):
            losses, accuracies = columns[0, k], columns[1, k]
            losses.set_title(f"{k + 1}. {_TITLES.get(phase, phase)}" if staged else "")
            _draw_losses(losses, epochs)
            if phase == "estimators":  # its classifier is frozen
                _draw_estimates(accuracies, epochs)
            else:
                _draw_accuracies(accuracies, history, phase, epochs)
            accuracies.set_xlabel("epoch")
        columns[0, 0].set_ylabel("loss (training)")
        legend_below(figure, columns[1, -1])
    num = _num_validated(history)
    overfitting = overfitting_text(history)
    phases = ", then ".join(f"{name} ({len(e)} epochs)" for name, e in history.phases.items())
    return Picture(
        "learning",
        f"{history.name}: learning and robustness curves",
        f"Loss on training batches and accuracy on {'held-out' if num is None else num} "
        f"validation images, clean and under PGD-{history.config.validation.steps} "
        f"({_threat(history)}), with 95% intervals as bands. {overfitting}",
        f"Learning curves of {history.name}: {phases}. {overfitting}",
        figure,
    )


def together_picture(histories: Sequence[History], styles: Styles | None = None) -> Picture | None:
    """Draws validation accuracy of several classifiers by epoch.

    Args:
        histories: of runs with the same validation images and attack.
        styles: of the curves by run; None: in their order.

    Returns:
        None where fewer than two of the runs have epochs.
    """
    drawn = [one for one in histories if one.phases.get(CLASSIFIER)]
    if len(drawn) < 2:
        return None
    with report_style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for axes, title, metric in zip(
            panels, ("clean", "robust"), ("clean_acc", "robust_acc"), strict=True
        ):
            for history in drawn:
                epochs = [one for one in history.phases[CLASSIFIER] if one.val]
                accuracies = [one.val[metric] for one in epochs]
                style = (styles or {}).get(history.name, {})
                numbers = [one.number for one in epochs]
                plot_curve(axes, numbers, accuracies, label=history.name, **style)
            axes.set(title=title, xlabel="epoch")
            percent_axis(axes.yaxis)
            epoch_axis(axes.xaxis)
        panels[0].set_ylabel("accuracy (validation)")
        legend_below(figure, panels[0])
    averaged = (
        " Of the weights as trained; the pictures of each run show averaged weights."
        if any(map(_is_averaged, drawn))
        else ""
    )
    return Picture(
        "learning-together",
        "Validation accuracy of all runs",
        f"Clean and robust accuracy by epoch on the same validation images, under "
        f"PGD-{drawn[0].config.validation.steps} ({_threat(drawn[0])}).{averaged}",
        f"Validation accuracy by epoch of {', '.join(one.name for one in drawn)}.",
        figure,
    )


def overfitting_text(history: History) -> str:
    """Describes the robust accuracy lost between the best and the last epoch; empty before two."""
    epochs = [one for one in history.phases.get(CLASSIFIER, ()) if one.val]
    best = next((one for one in epochs if one.number == history.best_epoch()), None)
    if best is None or len(epochs) < 2:
        return ""
    last = epochs[-1]
    robust, end = best.val["robust_acc"], last.val["robust_acc"]
    if best is last:
        return f"The last epoch, {last.number}, is the best one: {percent_text(robust)} robust."
    weights = " of the weights as trained" if _is_averaged(history) else ""
    return (
        f"Robust-overfitting gap{weights}: {100 * (robust - end):.1f} points between the best "
        f"epoch, {best.number} ({percent_text(robust)}), and the last one, {last.number} "
        f"({percent_text(end)}). The best epoch is the highest of all, so a small gap is expected "
        "without overfitting."
    )


def _draw_losses(axes: Axes, epochs: Sequence[EpochRecord]) -> None:
    curves = {name: [one.train.get(name, np.nan) for one in epochs] for name in _LOSSES}
    if curves["loss_adv"] == curves["loss"]:
        del curves["loss_adv"]
    if np.isfinite(curves["loss"]).any():  # the estimator loss has another scale
        del curves["loss_estimators"]
    finite = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    axes.set_prop_cycle(STYLES[2:])
    for name, values in finite.items():
        plot_curve(axes, [one.number for one in epochs], values, label=_LOSSES[name])
    epoch_axis(axes.xaxis)
    if finite:  # none after divergence in the first epoch
        axes.legend()


def _draw_accuracies(
    axes: Axes, history: History, phase: str, epochs: Sequence[EpochRecord]
) -> None:
    validated = [one for one in epochs if one.val]
    numbers = [one.number for one in validated]
    num = _num_validated(history)
    for name, label in _ACCURACIES.items():
        values = [one.val.get(name, np.nan) for one in validated]
        if np.isnan(values).all():
            continue
        line = plot_curve(axes, numbers, values, label=label)
        if num and name in ("clean_acc", "robust_acc"):
            low, high = np.array([wilson_interval(round(v * num), num) for v in values]).T
            axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.15)
    if phase == CLASSIFIER:
        _mark(axes, history, "best", "robust_acc", validated)
        _mark(axes, history, "best-averaged", "averaged/robust_acc", validated)
    axes.set_ylabel("accuracy (validation)")
    percent_axis(axes.yaxis)
    epoch_axis(axes.xaxis)


def _draw_estimates(axes: Axes, epochs: Sequence[EpochRecord]) -> None:
    """Draws the estimates on the pairs that the estimators are trained on."""
    axes.set_prop_cycle(STYLES[4:])
    for kind in ("natural", "adversarial"):
        name = f"mi/{kind}_of_{kind}"
        values = [one.val.get(name, np.nan) for one in epochs]
        plot_curve(axes, [one.number for one in epochs], values, label=f"{kind} MI")
    axes.set_ylabel("nats (validation)")
    epoch_axis(axes.xaxis)
    axes.legend()


def _mark(
    axes: Axes, history: History, which: str, metric: str, epochs: Sequence[EpochRecord]
) -> None:
    """Draws hollow marks around the best and the last epoch on a robust curve."""
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


def _is_averaged(history: History) -> bool:
    return any("averaged/robust_acc" in one.val for one in history.phases.get(CLASSIFIER, ()))


def _num_validated(history: History) -> int | None:
    """Returns the number of validation images behind each accuracy; None if it is unknown."""
    num: int | None = history.start.get("data", {}).get("sizes", {}).get("val")
    most = history.config.validation.max_samples
    return num if most is None or num is None else min(num, most)


def _threat(history: History) -> str:
    return threat_text(history.config.attack.norm, history.config.attack.eps)
