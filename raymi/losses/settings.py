"""Settings of the adversarial loss."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from raymi.fields import NonNegative, Section, Share


class LossConfig(Section):
    """Adversarial loss, to which the MI term is added."""

    base: Literal["at", "trades", "mart"] = "at"
    """AT (Madry et al. 2018), TRADES (Zhang et al. 2019) or MART (Wang et al. 2020)."""
    beta: NonNegative | None = None
    """Weight of the robust term of TRADES or MART; none: 6 for TRADES, 5 for MART."""
    label_smoothing: Share = 0.0
    """Label smoothing of AT's cross-entropy."""
    batchnorm: Literal["adversarial", "mix", "released"] = "adversarial"
    """Batches that update the running BatchNorm statistics: the adversarial one, both (mix), or
    the seven forwards of the authors' code. mix with mi.weight=0 is the control for this effect."""

    @model_validator(mode="before")
    @classmethod
    def _default_beta(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("beta") is None:
            usual = {"trades": 6.0, "mart": 5.0}.get(str(values.get("base", "at")))
            values = {**values, "beta": usual}
        return values

    @model_validator(mode="after")
    def _smoothing_is_for_at(self) -> LossConfig:
        if self.label_smoothing > 0 and self.base != "at":
            raise ValueError(f"label_smoothing is defined for base=at only, got base={self.base}")
        return self
