"""Plots of a sweep: Pareto front and importance of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from raymi.formatting import printable
from raymi.selection.front import on_front
from raymi.tuning.results_table import Row

_STYLES = {  # marker and colour by the state of a trial
    "finished": ("o", "tab:blue"),
    "stopped": ("x", "tab:gray"),
    "running": (".", "tab:gray"),
    "failed": ("x", "tab:red"),
}


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Returns the finished trials that no other one beats in both accuracies, by clean accuracy.

    Trials with equal accuracies are all on the front.
    """
    finished = [row for row in rows if row.state == "finished" and row.by_seed]
    points = [(row.clean, row.robust) for row in finished]
    front = [row for row, is_on in zip(finished, on_front(points), strict=True) if is_on]
    return sorted(front, key=lambda row: (row.clean, row.number))


def pareto_picture(title: str, rows: Sequence[Row]) -> Figure:
    """Plots clean against robust validation accuracy of each validated trial.

    A line marks the Pareto front, whose trials are labelled with their numbers.
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for state, (marker, colour) in _STYLES.items():
        points = [row for row in rows if row.state == state and row.by_seed]
        if points:
            clean, robust = [row.clean for row in points], [row.robust for row in points]
            axes.scatter(clean, robust, marker=marker, color=colour, label=state)
    front = pareto_front(rows)
    if front:
        steps = [row.clean for row in front], [row.robust for row in front]
        axes.plot(*steps, color="tab:orange", drawstyle="steps-pre", label="Pareto front", zorder=0)
    for row in front:
        point = row.clean, row.robust
        axes.annotate(str(row.number), point, xytext=(4, 4), textcoords="offset points")
    axes.set(title=printable(title), xlabel="clean accuracy (validation)")
    axes.set_ylabel("robust accuracy (validation)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def importance_picture(title: str, importance: Mapping[str, float]) -> Figure:
    """Plots the share of the differences between trials that each parameter explains.

    Args:
        title: Title of the plot.
        importance: Fraction by name of the parameter; the largest bar is drawn on top.
    """
    names = sorted(importance, key=lambda name: importance[name])  # bars are drawn bottom-up
    figure = Figure(figsize=(6, 1.5 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [importance[name] for name in names], color="tab:blue")
    axes.bar_label(bars, [f"{100 * importance[name]:.0f}%" for name in names], padding=3)
    axes.set(
        title=printable(title),
        xlabel="share of the differences between trials (fANOVA)",
        xlim=(0, 1.1),
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure
