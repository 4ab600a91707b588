"""Settings of the classifier."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raymi.fields import Count, Listed, Real, Section, at_most
from raymi.models.families import MODELS, check_model

_LISTED = {
    **MODELS,
    "torchvision:NAME": "network of torchvision, such as torchvision:resnet50",
    "timm:NAME": "network of timm, if installed, such as timm:vit_small_patch16_224",
    "module:function": "your own (docs/extending.md)",
}


class ModelConfig(Section):
    """Classifier."""

    name: Annotated[str, Listed("models", _LISTED)] = "resnet18"
    """Architecture; torchvision:NAME or timm:NAME, such as torchvision:resnet50; or your own as
    module:function (docs/extending.md)."""
    width: Annotated[Real, Field(gt=0), at_most(256)] | None = None
    """Multiplier of the number of channels; none: the architecture's own."""
    depth: Count | None = None
    """Number of layers; none: the architecture's own."""
    activation: Literal["relu", "silu"] = "relu"
    """Activation function."""
    weights: str | None = None
    """Weights to start from: a file, a run of the same network, or models:/NAME@ALIAS in MLflow;
    none: random ones."""

    @model_validator(mode="after")
    def _can_be_built(self) -> ModelConfig:
        if ":" not in self.name:  # the user's own is imported when a run begins
            check_model(self.name, image_size=32, width=self.width, depth=self.depth)
        return self
