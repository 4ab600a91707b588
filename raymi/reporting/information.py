"""Mutual information of natural and adversarial samples: the paper's Fig. 4."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from raymi.reporting.history import History
from raymi.reporting.look import (
    WIDTH,
    Picture,
    legend_below,
    looking,
    short,
    style_of,
    whole_numbers,
)
from raymi.runs.record import CLASSIFIER

_KINDS = {
    "natural": "natural MI, I_N",
    "adversarial": "adversarial MI, I_A",
}
_OUTPUTS = {"natural": "of natural outputs h(x)", "adversarial": "of adversarial outputs h(x_adv)"}

READING = (
    "Estimates are lower bounds, each relative to its critic: raising one shows that outputs tell "
    "more, while a lower one only says that this critic sees less."
)


def training_picture(history: History) -> Picture | None:
    """Both kinds of MI of both kinds of outputs on validation, by epoch, as the run's own critics
    see them; None where the run had none."""
    epochs = [
        one
        for one in history.phases.get(CLASSIFIER, ())
        if any(name.startswith("mi/") for name in one.val)
    ]
    if not epochs:
        return None
    kinds = _kinds_in(epochs[-1].val)
    with looking():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            for k, (of, label) in enumerate(_OUTPUTS.items()):
                style, name = style_of(k), f"mi/{kind}_of_{of}"
                axes.plot(
                    [one.number for one in epochs],
                    [one.val.get(name, np.nan) for one in epochs],
                    color=style.color,
                    linestyle=style.line,
                    marker=style.marker,
                    markevery=max(1, len(epochs) // 10),
                    label=label,
                )
            axes.set(title=_title(kind, history), xlabel="epoch")
            whole_numbers(axes.xaxis)
        panels[0].set_ylabel("nats (validation)")
        legend_below(figure, panels[0])
    return Picture(
        "mi-training",
        f"{history.name}: mutual information during training",
        "As the run's own critics see it, which the classifier was trained against: to be compared "
        f"within this run, not with others. {READING}",
        f"Both kinds of MI of {history.name} by epoch; at the end {_said(epochs[-1].val)}.",
        figure,
    )


def probe_picture(histories: Sequence[History]) -> Picture | None:
    """What fresh probes see of finished classifiers, side by side; None where there are none.

    Args: histories, of runs whose probes had the same budget, on the same images and attack.
    """
    probed = [(one.name, one.probe) for one in histories if one.probe is not None]
    if not probed:
        return None
    names = [f"{name} ({probe.which})" for name, probe in probed]
    with looking():
        figure = Figure(figsize=(WIDTH, 1.5 + 0.55 * len(probed)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        rows = np.arange(len(probed), dtype=float)
        for axes, (kind, title) in zip(panels, _KINDS.items(), strict=True):
            for k, (of, label) in enumerate(_OUTPUTS.items()):
                values = [probe.estimates.get(f"mi/{kind}_of_{of}", np.nan) for _, probe in probed]
                bars = axes.barh(
                    rows + (k - 0.5) * 0.38,
                    values,
                    height=0.36,
                    color=style_of(k).color if k == 0 else "white",
                    edgecolor=style_of(k).color,
                    hatch=None if k == 0 else "////",
                    label=label,
                )
                axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
            axes.margins(x=0.14)
            axes.set(title=title, xlabel="nats (validation)")
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(rows, [short(name, 30) for name in names])
        panels[0].set_ylim(len(probed) - 0.5, -0.5)
        legend_below(figure, panels[0])
    budget = json.loads(probed[0][1].settings)["probe"]
    return Picture(
        "mi-probes",
        "Mutual information of finished classifiers (the paper's Fig. 4)",
        f"By fresh critics, trained on each frozen classifier with the same budget ("
        f"{budget['steps']} steps of {budget['batch']} images): these can be compared across runs. "
        f"At most about {np.log(budget['batch'] - 1):.2f} nats can be seen. {READING}",
        "; ".join(f"{name}: {_said(probe.estimates)}" for name, probe in probed),
        figure,
    )


def _kinds_in(values: Mapping[str, float]) -> list[str]:
    """Kinds of MI that were estimated."""
    return [kind for kind in _KINDS if any(name.startswith(f"mi/{kind}_of_") for name in values)]


def _title(kind: str, history: History) -> str:
    """WMIM's natural critic sees the whole adversarial image."""
    if kind == "natural" and history.config.mi.natural_pattern != "clean":
        return "MI of the adversarial image"
    return _KINDS[kind]


def _said(values: Mapping[str, float]) -> str:
    """Estimates in words."""
    parts = [
        f"{_KINDS[kind]} {label} {values[name]:.2f} nats"
        for kind in _KINDS
        for of, label in _OUTPUTS.items()
        if (name := f"mi/{kind}_of_{of}") in values
    ]
    return ", ".join(parts)
