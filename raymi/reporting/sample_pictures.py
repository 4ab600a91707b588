"""Pictures of natural images, the noise of an attack, and adversarial images."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from raymi.formatting import threat_text, truncate_middle
from raymi.reporting.outcomes import EXAMPLES
from raymi.reporting.robustness_curve import RobustnessCurve
from raymi.reporting.style import COLOURS, WIDTH, Picture, report_style

_LONGEST_NAME = 11
_GREY = 0.5


def samples_picture(name: str, curve: RobustnessCurve) -> Picture | None:
    """Draws a column for each example: natural image, amplified noise, adversarial image.

    Args:
        name: of the run.
        curve: of the run.

    Returns:
        None where no image is classified correctly.
    """
    seen = curve.at_threat
    num = len(seen.examples)
    if num == 0:
        return None
    delta = seen.x_adv - seen.x
    factor = _GREY / max(float(delta.abs().max()), 1e-12)
    broken = (seen.predicted_adv != seen.y)[seen.examples].tolist()
    with report_style():
        figure = Figure(figsize=(WIDTH, 3 * WIDTH / max(num, 6) + 0.9), layout="constrained")
        grid = figure.subplots(3, num, squeeze=False)
        for k, i in enumerate(seen.examples.tolist()):
            natural = _prediction(curve, int(seen.predicted[i]), float(seen.confidence[i]))
            adversarial = _prediction(
                curve, int(seen.predicted_adv[i]), float(seen.confidence_adv[i])
            )
            _show(grid[0, k], seen.x[k], natural)
            _show(grid[1, k], _GREY + factor * delta[k], "")
            _show(grid[2, k], seen.x_adv[k], adversarial, broken[k])
        for row, label in enumerate(("natural", f"noise x {factor:.3g}", "adversarial")):
            grid[row, 0].set_ylabel(label)
    return Picture(
        "samples",
        f"{name}: natural image, noise, adversarial image",
        f"Correctly classified images of {curve.data}, with the prediction and its probability "
        f"above each: at most {EXAMPLES} that PGD-{curve.steps} "
        f"({threat_text(curve.threat.norm, curve.threat.eps)}) breaks, in thick frames, and at "
        f"most {EXAMPLES} that withstand it, the first ones of each kind. They are examples, not a "
        f"measurement. The noise is amplified by {factor:.3g}, around grey.",
        f"{num} test images of {name}, {sum(broken)} of them broken by the attack, each natural, "
        "as amplified noise, and adversarial.",
        figure,
    )


def _prediction(curve: RobustnessCurve, label: int, confidence: float) -> str:
    name = truncate_middle(curve.class_names[label], _LONGEST_NAME)
    return f"{name}\n{100 * confidence:.0f}%"


def _show(axes: Axes, image: Tensor, title: str, broken: bool = False) -> None:
    """Shows an image.

    Args:
        axes: to draw on.
        image: (3, H, W) in [0, 1].
        title: shown above the image.
        broken: whether to emphasise the image.
    """
    pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8.5, loc="center", fontweight="bold" if broken else "normal")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(
            visible=True,
            color=COLOURS[1] if broken else "0.6",
            linewidth=3 if broken else 0.6,
        )
