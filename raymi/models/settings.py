"""Settings of the classifier."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raymi.fields import Count, Listed, Real, Section, at_most
from raymi.models.families import MODELS, check_model


class ModelConfig(Section):
    """Classifier."""

    name: Annotated[str, Listed("models", {**MODELS, "module:function": "your own"})] = "resnet18"
    """Architecture, or your own as module:function."""
    width: Annotated[Real, Field(gt=0), at_most(256)] | None = None
    """Multiplier of the number of channels; none: the architecture's own."""
    depth: Count | None = None
    """Number of layers; none: the architecture's own."""

    @model_validator(mode="after")
    def _can_be_built(self) -> ModelConfig:
        if ":" not in self.name:  # the user's own is imported when a run begins
            check_model(self.name, image_size=32, width=self.width, depth=self.depth)
        return self
