"""Named complete configurations: what each changes against the defaults of `raymi.config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymi.config import Config
from raymi.overrides import did_you_mean, overlay, validate


@dataclass(frozen=True)
class Recipe:
    """A description for people, and nested settings laid over the defaults."""

    description: str
    settings: Mapping[str, Any]


RECIPES: dict[str, Recipe] = {
    "quickstart": Recipe(
        "NAMID on scikit-learn's handwritten digits, 2 CPU workers, about two minutes",
        {
            "data": {
                "name": "digits",
                "image_size": 16,
                "val_fraction": 0.15,
                "flip": False,
                "crop_padding": 0,
            },
            "model": {"name": "small-cnn"},
            "attack": {"eps": 0.1, "steps": 7},
            "mi": {"hidden": 128, "base_width": 16},
            "optim": {"epochs": 15, "batch_size": 64, "lr": 0.1, "schedule": "onecycle"},
            "scaling": {"workers": 2},
        },
    ),
}


def build_config(
    recipe: str, settings: Mapping[str, Any] | None = None, problems: Sequence[str] = ()
) -> Config:
    """The configuration of a recipe with `settings` (a nested tree) laid over it.

    Args: recipe, its name; settings; problems, what was found wrong already (see `validate`).
    Raises: UserError that lists an unknown recipe and every wrong value.
    """
    settings = settings or {}
    if recipe not in RECIPES:
        unknown = f"unknown recipe {recipe!r}: {did_you_mean(recipe, RECIPES)}"
        validate(settings, [unknown, *problems])
    return validate(overlay(RECIPES[recipe].settings, settings), problems)
