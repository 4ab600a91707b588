"""Pictures of natural and adversarial mutual information (Fig. 4 of the paper)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from raymi.formatting import truncate_middle
from raymi.reporting.history import History
from raymi.reporting.style import (
    COLOURS,
    WIDTH,
    Picture,
    epoch_axis,
    legend_below,
    plot_curve,
    report_style,
)
from raymi.runs.record import CLASSIFIER, EpochRecord

_KINDS = {"natural": "natural MI, I_N", "adversarial": "adversarial MI, I_A"}
_OUTPUTS = {"natural": "of natural outputs h(x)", "adversarial": "of adversarial outputs h(x_adv)"}
_BOUNDS = {
    "mi/natural_lower": "natural MI, at least",
    "mi/adversarial_upper": "adversarial MI, at most",
    "mi/js": "MI of output and natural-or-adversarial coin",
}
"""Metrics of forms without estimators."""
_READING = (
    "Estimates are lower bounds, relative to their critic: a higher one shows that outputs contain "
    "more information; a lower one shows only that this critic finds less."
)


def training_picture(history: History) -> Picture | None:
    """Draws MI on validation by epoch, of the run's own critics or bounds; None without MI."""
    epochs = [
        one
        for one in history.phases.get(CLASSIFIER, ())
        if any(name.startswith("mi/") for name in one.val)
    ]
    if not epochs:
        return None
    last = epochs[-1].val
    if bounds := [name for name in _BOUNDS if name in last]:
        return _bounds_picture(history, epochs, bounds)
    kinds = [kind for kind in _KINDS if any(name.startswith(f"mi/{kind}_of_") for name in last)]
    with report_style():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for output, label in _OUTPUTS.items():
                values = [one.val.get(f"mi/{kind}_of_{output}", np.nan) for one in epochs]
                plot_curve(axes, [one.number for one in epochs], values, label=label)
            # the natural critic of WMIM reads the adversarial image
            whole = kind == "natural" and history.config.mi.natural_pattern != "clean"
            axes.set(title="MI of the adversarial image" if whole else _KINDS[kind], xlabel="epoch")
            epoch_axis(axes.xaxis)
        panels[0].set_ylabel("nats (validation)")
        legend_below(figure, panels[0])
    return Picture(
        "mi-training",
        f"{history.name}: mutual information during training",
        "Estimated by the run's own critics, against which the classifier was trained: comparable "
        f"within this run, not across runs. {_READING}",
        f"Both kinds of MI of {history.name} by epoch; at the end {_text_of(last)}.",
        figure,
    )


def _bounds_picture(
    history: History, epochs: Sequence[EpochRecord], names: Sequence[str]
) -> Picture:
    """Draws bounds on the MI of adversarial outputs by epoch, of a form without critics."""
    with report_style():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for name in names:
            values = [one.val.get(name, np.nan) for one in epochs]
            plot_curve(axes, [one.number for one in epochs], values, label=_BOUNDS[name])
        axes.set(xlabel="epoch", ylabel="nats (validation)")
        epoch_axis(axes.xaxis)
        legend_below(figure, axes)
    text = ", ".join(f"{_BOUNDS[name]} {epochs[-1].val[name]:.2f} nats" for name in names)
    return Picture(
        "mi-training",
        f"{history.name}: mutual information during training",
        "Bounds on the MI of adversarial outputs, without critics. They are of the label that an "
        "output draws, so they do not compare with estimates by critics.",
        f"Bounds on MI of {history.name} by epoch; at the end {text}.",
        figure,
    )


def probe_picture(histories: Sequence[History]) -> Picture | None:
    """Draws the estimates of fresh probes on finished classifiers; None without probes.

    Args:
        histories: of runs whose probes had the same budget, images and attack.
    """
    probed = [(one.name, one.probe) for one in histories if one.probe is not None]
    if not probed:
        return None
    with report_style():
        figure = Figure(figsize=(WIDTH, 1.5 + 0.55 * len(probed)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        rows = np.arange(len(probed), dtype=float)
        for axes, (kind, title) in zip(panels, _KINDS.items(), strict=True):
            for k, (output, label) in enumerate(_OUTPUTS.items()):
                values, baselines = (
                    [
                        probe.estimates.get(f"mi/{kind}_of_{output}{suffix}", np.nan)
                        for _, probe in probed
                    ]
                    for suffix in ("", "_shuffled")
                )
                bars = axes.barh(
                    rows + (k - 0.5) * 0.38,
                    values,
                    height=0.36,
                    color=COLOURS[k] if k == 0 else "white",
                    edgecolor=COLOURS[k],
                    hatch=None if k == 0 else "////",
                    label=label,
                )
                labels = [f"{v:.2f} ({b:.2f})" for v, b in zip(values, baselines, strict=True)]
                axes.bar_label(bars, labels, padding=3, fontsize=8)
            axes.margins(x=0.24)
            axes.set(title=title, xlabel="nats (validation)")
            axes.grid(axis="y", visible=False)
        names = [truncate_middle(f"{name} ({probe.which})", 30) for name, probe in probed]
        panels[0].set_yticks(rows, names)
        panels[0].set_ylim(len(probed) - 0.5, -0.5)
        legend_below(figure, panels[0])
    budget = json.loads(probed[0][1].settings)["probe"]
    return Picture(
        "mi-probes",
        "Mutual information of finished classifiers (Fig. 4 of the paper)",
        f"Estimated by fresh critics, trained on each frozen classifier with the same budget ("
        f"at most {budget['steps']} steps of {budget['batch']} images) and measured on images that "
        "they did not see: comparable across runs. Brackets: the same with shuffled outputs, where "
        f"the MI is 0. No estimate exceeds {np.log(2 * budget['batch']):.2f} nats. "
        f"{_READING}",
        "; ".join(f"{name}: {_text_of(probe.estimates)}" for name, probe in probed),
        figure,
    )


def _text_of(values: Mapping[str, float]) -> str:
    """Returns estimates as text."""
    parts = [
        f"{_KINDS[kind]} {label} {values[name]:.2f} nats{_baseline_of(values, name)}"
        for kind in _KINDS
        for output, label in _OUTPUTS.items()
        if (name := f"mi/{kind}_of_{output}") in values
    ]
    return ", ".join(parts)


def _baseline_of(values: Mapping[str, float], name: str) -> str:
    """Returns a probe's baseline as text; nothing for estimates of training."""
    baseline = values.get(f"{name}_shuffled")
    return "" if baseline is None else f" (shuffled {baseline:.2f})"
