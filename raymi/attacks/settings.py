"""Settings of the threat model and of the training attack."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from raymi.fields import NonNegative, Positive, Section, Whole


class AttackConfig(Section):
    """Threat model, and the PGD attack on training images."""

    norm: Literal["linf", "l2"] = "linf"
    """Norm that bounds the perturbation."""
    eps: NonNegative = 8 / 255
    """Radius of the perturbation, in [0, 1] pixel units."""
    alpha: Positive | None = None
    """Step size of the training attack; none: eps / 4."""
    steps: Whole = 10
    """Steps of the training attack; 0 with start=image: undefended training."""
    start: Literal["ball", "gaussian", "image"] = "ball"
    """Start of the training attack: a random point of the ball, the image plus normal noise of
    0.001 (as the code of TRADES, MART and NAMID), or the image."""
    projection: Literal["ball-first", "box-first"] = "ball-first"
    """L2: project into the ball or into [0, 1] first. box-first is TRADES' code (with alpha =
    2 * eps / steps), which also divides by the bare norm of the gradient."""
    objective: Literal["ce", "kl"] | None = None
    """Objective of the attack: cross-entropy, or KL from the clean output; none: the loss's own."""

    @model_validator(mode="after")
    def _radius_in_pixel_units(self) -> AttackConfig:
        largest = 1.0 if self.norm == "linf" else 16.0
        if self.eps > largest:
            raise ValueError(
                f"eps must be at most {largest:g} for {self.norm}, got {self.eps:g}: images are in "
                f"[0, 1], did you mean eps={self.eps:g}/255?"
            )
        if self.alpha is not None and 0 < 2 * self.eps < self.alpha:
            raise ValueError(
                f"alpha must be at most 2 * eps = {2 * self.eps:g}, got {self.alpha:g}: "
                "a longer step only bounces between the walls of the ball"
            )
        return self

    @property
    def step_size(self) -> float:
        """Step size in [0, 1] pixel units: `alpha`, or eps / 4."""
        return self.eps / 4 if self.alpha is None else self.alpha


def start_problem(objective: str | None, attack: AttackConfig) -> str | None:
    """Returns why an objective cannot be attacked from its start; None: it can, or is unknown."""
    if objective == "kl" and attack.steps > 0 and attack.start == "image":
        return (
            "attack.start must be ball or gaussian for attack.objective=kl (which is TRADES'), got "
            "image: KL has no gradient at the image itself"
        )
    return None
