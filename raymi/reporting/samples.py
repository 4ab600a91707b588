"""Natural images, the noise of an attack, and what comes of both."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from raymi.reporting.look import WIDTH, Picture, looking, short, threat_text
from raymi.reporting.measured import Measured
from raymi.reporting.outcomes import EXAMPLES

_LONGEST_NAME = 11
_GREY = 0.5


def samples_picture(name: str, measured: Measured) -> Picture | None:
    """A grid: a column for each sample; natural image, noise (amplified) and adversarial image with
    what the classifier says of it.

    Args: name of the run. None where nothing is classified right.
    """
    seen = measured.at_threat
    num = len(seen.examples)
    if num == 0:
        return None
    delta = seen.x_adv - seen.x
    factor = _GREY / max(float(delta.abs().max()), 1e-12)
    with looking():
        figure = Figure(figsize=(WIDTH, 3 * WIDTH / max(num, 6) + 0.9), layout="constrained")
        grid = figure.subplots(3, num, squeeze=False)
        for k, place in enumerate(seen.examples.tolist()):
            said, said_adv = (
                _said(measured, int(predicted[place]), float(confidence[place]))
                for predicted, confidence in (
                    (seen.predicted, seen.confidence),
                    (seen.predicted_adv, seen.confidence_adv),
                )
            )
            broken = bool(seen.predicted_adv[place] != seen.y[place])
            _show(grid[0, k], seen.x[k], said)
            _show(grid[1, k], _GREY + factor * delta[k], "")
            _show(grid[2, k], seen.x_adv[k], said_adv, broken)
        for row, label in enumerate(("natural", f"noise x {factor:.3g}", "adversarial")):
            grid[row, 0].set_ylabel(label)
    broken_num = int((seen.predicted_adv[seen.examples] != seen.y[seen.examples]).sum())
    return Picture(
        "samples",
        f"{name}: natural, noise, adversarial",
        f"Images of {measured.data} that are classified right, with the prediction and its "
        f"probability above each: the first {EXAMPLES} (at most) that PGD-{measured.steps} "
        f"({threat_text(measured.threat.norm, measured.threat.eps)}) breaks, in thick "
        f"frames, and the first {EXAMPLES} that withstand it. They are examples, not a measure. "
        f"Noise is shown {factor:.3g} times as strong, around grey.",
        f"{num} test images of {name}, {broken_num} of them broken by the attack, each natural, "
        "as amplified noise, and adversarial.",
        figure,
    )


def _said(measured: Measured, predicted: int, confidence: float) -> str:
    label = short(measured.class_names[predicted], _LONGEST_NAME)
    return f"{label}\n{100 * confidence:.0f}%"


def _show(axes: Axes, image: Tensor, title: str, broken: bool = False) -> None:
    """Args: image, (3, H, W) in [0, 1]."""
    pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8.5, loc="center", fontweight="bold" if broken else "normal")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(
            visible=True,
            color="#D55E00" if broken else "0.6",
            linewidth=3 if broken else 0.6,
        )
