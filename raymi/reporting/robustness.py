"""How robust classifiers are: accuracy against the radius of the attack, and class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from raymi.reporting.look import (
    WIDTH,
    Picture,
    legend_below,
    looking,
    norm_text,
    percent,
    percent_text,
    radius_text,
    short,
    style_of,
    threat_text,
)
from raymi.reporting.measured import Measured, Rate

MOST_RUNS = 8
"""In one picture of classes, so that their intervals can be told apart."""
_MOST_CLASSES = 20
_LONGEST_NAME = 18
_TALLEST = 9.0  # inches, of a printed page


def radius_picture(measured: Mapping[str, Measured]) -> Picture:
    """Accuracy by radius, with intervals, of all runs in one picture.

    Args: measured, by the names of the runs: on the same images, in one norm, with as many steps.
    """
    first = next(iter(measured.values()))
    threats = sorted({one.threat.eps for one in measured.values()})
    with looking():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        for k, (name, one) in enumerate(measured.items()):
            style, curve = style_of(k), one.curve()
            radii, rates = np.array(list(curve)), list(curve.values())
            axes.errorbar(
                radii,
                [rate.accuracy for rate in rates],
                yerr=_errors(rates),
                color=style.color,
                linestyle=style.line,
                marker=style.marker,
                capsize=2.5,
                elinewidth=1,
                label=name,
            )
        for line, eps in enumerate(threats):
            axes.axvline(eps, color="0.35", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                f"threat {threat_text(first.threat.norm, eps)}",
                (eps, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -2 - 11 * line),  # of radii that are close, one below the other
                textcoords="offset points",
                va="top",
                fontsize=8,
            )
        chance = 1 / len(first.class_names)
        axes.axhline(
            chance, color="0.35", linewidth=1, linestyle=":", zorder=0, label="chance (uniform)"
        )
        axes.set(
            xlabel=f"radius eps of the attack ({norm_text(first.threat.norm)}, pixel units)",
            ylabel="accuracy (test)",
            ylim=(-0.02, 1.04),
        )
        ticks = _ticks(sorted({eps for one in measured.values() for eps in one.curve()}))
        axes.set_xticks(ticks, [radius_text(eps) for eps in ticks])
        percent(axes.yaxis)
        legend_below(figure, axes)
    return Picture(
        "accuracy-eps",
        f"{first.data}, {norm_text(first.threat.norm)}: accuracy by radius",
        f"Under PGD-{first.steps} with steps of eps / 4, on {first.num} images of {first.data}, "
        "with 95% Wilson intervals; at 0, natural images. PGD is not AutoAttack: true robustness "
        "may be lower. A sound measurement falls with the radius, to chance and below.",
        "; ".join(f"{name}: {_curve_in_words(one)}" for name, one in measured.items()),
        figure,
    )


def class_picture(measured: Mapping[str, Measured]) -> Picture:
    """Clean and robust accuracy of each class, with intervals, of all runs.

    Args: measured, by the names of at most `MOST_RUNS` runs: on the same images, under one threat.
    """
    first = next(iter(measured.values()))
    by_class = {name: one.by_class() for name, one in measured.items()}
    labels = list(next(iter(by_class.values())))
    left_out = len(labels) - _MOST_CLASSES
    if left_out > 0:
        ours = next(iter(by_class.values()))
        labels = sorted(sorted(labels, key=lambda label: ours[label][1].accuracy)[:_MOST_CLASSES])
    names = [short(first.class_names[k], _LONGEST_NAME) for k in labels]
    rows = np.arange(len(labels), dtype=float)
    places = np.linspace(-0.36, 0.36, len(measured) + 2)[1:-1]
    with looking():
        height = min(_TALLEST, 1.4 + len(labels) * max(0.3, 0.15 * len(measured)))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for which, (axes, title) in enumerate(zip(panels, ("clean", "robust"), strict=True)):
            for k, (name, found) in enumerate(by_class.items()):
                style, rates = style_of(k), [found[label][which] for label in labels]
                axes.errorbar(
                    [rate.accuracy for rate in rates],
                    rows + places[k],
                    xerr=_errors(rates),
                    linestyle="none",
                    color=style.color,
                    marker=style.marker,
                    markersize=4,
                    elinewidth=0.9,
                    capsize=2,
                    label=name,
                )
            axes.set(title=title, xlabel="accuracy (test)", xlim=(-0.03, 1.03))
            axes.hlines(rows[:-1] + 0.5, -0.03, 1.03, color="0.85", linewidth=0.8)
            axes.grid(axis="y", visible=False)
            percent(axes.xaxis)
        panels[0].set_yticks(rows, names)
        panels[0].set_ylabel("class")
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        legend_below(figure, panels[0])
    absent = len(first.class_names) - len(first.by_class())
    some = f" {absent} of the classes {_have(absent)} no image among these." if absent else ""
    if left_out > 0:
        some += (
            f" Of {len(labels) + left_out} classes those {len(labels)} in which "
            f"{next(iter(measured))} is least robust: picked by their low numbers, these are "
            "biased downwards."
        )
    return Picture(
        "classes",
        f"{first.data}, {threat_text(first.threat.norm, first.threat.eps)}: accuracy by class",
        f"Clean, and under PGD-{first.steps}, "
        f"{threat_text(first.threat.norm, first.threat.eps)}, on {first.num} images of "
        f"{first.data}, with 95% Wilson intervals.{some}",
        "; ".join(_classes_in_words(name, one) for name, one in measured.items()),
        figure,
    )


def _ticks(radii: Sequence[float]) -> list[float]:
    """Those of some radii in order whose labels do not touch."""
    ticks = [radii[0]]
    for eps in radii[1:]:
        if eps - ticks[-1] > 0.09 * radii[-1]:
            ticks.append(eps)
    return ticks


def _errors(rates: Sequence[Rate]) -> np.ndarray:
    """(2, n), from the accuracies down and up to the ends of their intervals."""
    low = [max(0.0, rate.accuracy - rate.interval[0]) for rate in rates]
    high = [max(0.0, rate.interval[1] - rate.accuracy) for rate in rates]
    return np.array([low, high])


def _have(num: int) -> str:
    return "has" if num == 1 else "have"


def _curve_in_words(measured: Measured) -> str:
    points = (f"{percent_text(r.accuracy)} at {eps:.3g}" for eps, r in measured.curve().items())
    return ", ".join(points)


def _classes_in_words(name: str, measured: Measured) -> str:
    robust = {label: rates[1].accuracy for label, rates in measured.by_class().items()}
    worst, best = min(robust, key=lambda k: robust[k]), max(robust, key=lambda k: robust[k])
    classes = measured.class_names
    return (
        f"{name}: robust accuracy from {percent_text(robust[worst])} ({classes[worst]}) to "
        f"{percent_text(robust[best])} ({classes[best]})"
    )
