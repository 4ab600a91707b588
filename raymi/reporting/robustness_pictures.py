"""Pictures of accuracy against the radius of the attack, and of accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from raymi.formatting import norm_text, percent_text, radius_text, threat_text, truncate_middle
from raymi.reporting.robustness_curve import RobustnessCurve
from raymi.reporting.style import WIDTH, Picture, Styles, legend_below, percent_axis, report_style
from raymi.statistics import Number

MOST_RUNS = 8
"""Largest number of runs whose intervals are legible in one picture of classes."""
_MOST_CLASSES = 20
_LONGEST_NAME = 18
_TALLEST = 9.0  # inches, of a printed page


def radius_picture(curves: Mapping[str, RobustnessCurve], styles: Styles | None = None) -> Picture:
    """Draws accuracy by radius, with intervals, of all runs.

    Args:
        curves: by run, of the same images, norm and number of steps.
        styles: of the curves by run; None: in their order.
    """
    first = next(iter(curves.values()))
    norm = norm_text(first.threat.norm)
    accuracies = {name: curve.accuracies() for name, curve in curves.items()}
    with report_style():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        for name, by_radius in accuracies.items():
            numbers = list(by_radius.values())
            axes.errorbar(
                list(by_radius),
                [number.accuracy for number in numbers],
                yerr=_errors(numbers),
                capsize=2.5,
                elinewidth=1,
                label=name,
                **(styles or {}).get(name, {}),
            )
        for line, eps in enumerate(sorted({curve.threat.eps for curve in curves.values()})):
            axes.axvline(eps, color="0.35", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                f"threat {threat_text(first.threat.norm, eps)}",
                (eps, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -2 - 11 * line),  # close radii are labelled one below the other
                textcoords="offset points",
                va="top",
                fontsize=8,
            )
        chance = 1 / len(first.class_names)
        axes.axhline(
            chance, color="0.35", linewidth=1, linestyle=":", zorder=0, label="chance (uniform)"
        )
        axes.set(
            xlabel=f"radius eps of the attack ({norm}, pixel units)",
            ylabel="accuracy (test)",
            ylim=(-0.02, 1.04),
        )
        ticks = _ticks(sorted({eps for by_radius in accuracies.values() for eps in by_radius}))
        axes.set_xticks(ticks, [radius_text(eps) for eps in ticks])
        percent_axis(axes.yaxis)
        legend_below(figure, axes)
    points = {
        name: ", ".join(f"{percent_text(n.accuracy)} at {eps:.3g}" for eps, n in by_radius.items())
        for name, by_radius in accuracies.items()
    }
    return Picture(
        "accuracy-eps",
        f"{first.data}, {norm}: accuracy by radius",
        f"Under PGD-{first.steps} with steps of eps / 4, on {first.num} images of {first.data}, "
        "with 95% Wilson intervals; radius 0: natural images. PGD is weaker than AutoAttack: true "
        "robustness may be lower. Accuracy should fall with the radius, to chance and below.",
        "; ".join(f"{name}: {text}" for name, text in points.items()),
        figure,
    )


def class_picture(curves: Mapping[str, RobustnessCurve], styles: Styles | None = None) -> Picture:
    """Draws clean and robust accuracy of each class, with intervals, of all runs.

    Args:
        curves: of at most `MOST_RUNS` runs, of the same images and threat.
        styles: of the marks by run; None: in their order.
    """
    first = next(iter(curves.values()))
    by_class = {name: curve.by_class() for name, curve in curves.items()}
    reference = next(iter(by_class.values()))
    hardest = sorted(reference, key=lambda label: reference[label][1].accuracy)
    labels = sorted(hardest[:_MOST_CLASSES])
    rows = np.arange(len(labels), dtype=float)
    offsets = np.linspace(-0.36, 0.36, len(curves) + 2)[1:-1]
    with report_style():
        height = min(_TALLEST, 1.4 + len(labels) * max(0.3, 0.15 * len(curves)))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for which, (axes, title) in enumerate(zip(panels, ("clean", "robust"), strict=True)):
            for offset, (name, accuracies) in zip(offsets, by_class.items(), strict=True):
                numbers = [accuracies[label][which] for label in labels]
                axes.errorbar(
                    [number.accuracy for number in numbers],
                    rows + offset,
                    xerr=_errors(numbers),
                    **{**(styles or {}).get(name, {}), "linestyle": "none"},
                    markersize=4,
                    elinewidth=0.9,
                    capsize=2,
                    label=name,
                )
            axes.set(title=title, xlabel="accuracy (test)", xlim=(-0.03, 1.03))
            axes.hlines(rows[:-1] + 0.5, -0.03, 1.03, color="0.85", linewidth=0.8)
            axes.grid(axis="y", visible=False)
            percent_axis(axes.xaxis)
        names = [truncate_middle(first.class_names[label], _LONGEST_NAME) for label in labels]
        panels[0].set_yticks(rows, names)
        panels[0].set_ylabel("class")
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        legend_below(figure, panels[0])
    threat = threat_text(first.threat.norm, first.threat.eps)
    absent = len(first.class_names) - len(reference)
    notes = f" Classes without an image among these: {absent}." if absent else ""
    if len(labels) < len(reference):
        notes += (
            f" Shown are the {len(labels)} of {len(reference)} classes in which "
            f"{next(iter(curves))} is least robust. Selected by their low numbers, these are "
            "biased downwards."
        )
    return Picture(
        "classes",
        f"{first.data}, {threat}: accuracy by class",
        f"Clean, and under PGD-{first.steps}, {threat}, on {first.num} images of {first.data}, "
        f"with 95% Wilson intervals.{notes}",
        "; ".join(_class_text(name, curves[name], by_class[name]) for name in curves),
        figure,
    )


def _ticks(radii: Sequence[float]) -> list[float]:
    """Selects sorted radii whose labels do not touch."""
    ticks = [radii[0]]
    for eps in radii[1:]:
        if eps - ticks[-1] > 0.09 * radii[-1]:
            ticks.append(eps)
    return ticks


def _errors(numbers: Sequence[Number]) -> np.ndarray:
    """Returns (2, n), from the accuracies down and up to the ends of their intervals."""
    bars = [(one.accuracy - one.low, one.high - one.accuracy) for one in numbers]
    return np.array(bars).T.clip(min=0)


def _class_text(
    name: str, curve: RobustnessCurve, by_class: Mapping[int, tuple[Number, Number]]
) -> str:
    robust = {label: numbers[1].accuracy for label, numbers in by_class.items()}
    low, high = min(robust, key=lambda k: robust[k]), max(robust, key=lambda k: robust[k])
    return (
        f"{name}: robust accuracy from {percent_text(robust[low])} ({curve.class_names[low]}) to "
        f"{percent_text(robust[high])} ({curve.class_names[high]})"
    )
