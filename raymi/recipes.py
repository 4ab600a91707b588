"""Named complete configurations: what each changes against the defaults of `raymi.config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymi.config import Config
from raymi.errors import did_you_mean
from raymi.overrides import overlay, validate


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
            "model": {"name": "small-cnn", "depth": 4},
            "attack": {"eps": 0.1, "steps": 7},
            "mi": {"hidden": 128, "base_width": 16},
            "optim": {"epochs": 15, "batch_size": 64, "lr": 0.1, "schedule": "onecycle"},
            "scaling": {"workers": 2, "channels_last": True},
        },
    ),
    "cifar10-cpu": Recipe(
        "NAMID on CIFAR-10 with a small network, 2 CPU workers, about ten minutes",
        {
            "data": {"name": "cifar10"},
            "model": {"name": "small-resnet"},
            "attack": {"eps": 8 / 255, "steps": 3, "alpha": 4 / 255},
            "mi": {"hidden": 64, "base_width": 16},
            "optim": {"epochs": 2, "batch_size": 128, "lr": 0.2, "schedule": "onecycle"},
            "validation": {"max_samples": 1000},
            "evaluation": {"steps": 20, "max_samples": 2000},
            "scaling": {"workers": 2, "channels_last": True},
        },
    ),
}


def on_recipe(recipe: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The nested tree of a recipe with `settings` laid over it, and a line if there is no such
    recipe."""
    if recipe in RECIPES:
        return overlay(RECIPES[recipe].settings, settings), []
    return dict(settings), [f"unknown recipe {recipe!r}: {did_you_mean(recipe, RECIPES)}"]


def build_config(recipe: str, settings: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a recipe with `settings` (a nested tree) laid over it.

    Raises: UserError that lists an unknown recipe and every wrong value.
    """
    return validate(*on_recipe(recipe, settings or {}))
