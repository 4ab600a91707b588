"""Recipes: named complete configurations, as changes of the defaults of `raymi.config`.

A base recipe sets data, model, threat model and length of training; a variant, added to its name
(`quickstart-at`), sets the method. Variants of a recipe differ in the method only, so that
`python -m raymi.compare` can compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymi.config import Config
from raymi.errors import did_you_mean
from raymi.losses.registry import loss_titles, losses
from raymi.mi.settings import FORMS
from raymi.overrides import overlay, validate


@dataclass(frozen=True)
class Recipe:
    """Description of one line, and nested settings that replace defaults or those of a recipe."""

    description: str
    settings: Mapping[str, Any]


def _paper_settings(data: str, norm: str, eps: float) -> dict[str, Any]:
    """Returns the training settings of Zhou et al. (ICML 2022); eps in [0, 1] pixel units.

    Their encoder halves a 32-pixel image twice, to 8x8 locations; here a 64-pixel image is halved
    three times, to the same number of locations.
    """
    return {
        "data": {"name": data},
        "model": {"name": "resnet18"},
        "attack": {"norm": norm, "eps": eps, "steps": 10},
        "mi": {
            "form": "paper",
            "schedule": "staged",
            "weight": 5.0,
            "difference": 0.1,
            "hidden": 2048,
            "depth": 3 if data == "tiny-imagenet" else 2,
        },
        "optim": {
            "epochs": 100,
            "batch_size": 1024,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 2e-4,
            "schedule": "multistep",
            "milestones": (0.75, 0.9),
        },
        "evaluation": {"steps": 40},
    }


BASE_RECIPES: dict[str, Recipe] = {
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
            "probe": {"steps": 0},
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
            "probe": {"steps": 0},
            "scaling": {"workers": 2, "channels_last": True},
        },
    ),
    # One cycle of 40 epochs: its rate is low in the last few only, too few for robust overfitting,
    # which begins epochs after a drop of the rate; the average of 0.999 spans 3 epochs.
    "strong-cifar10": Recipe(
        "NAMID on CIFAR-10 with a strong baseline: ResNet-18, averaged weights, 40 epochs, a GPU",
        {
            "data": {"name": "cifar10"},
            "model": {"name": "resnet18"},
            "attack": {"norm": "linf", "eps": 8 / 255, "alpha": 2 / 255, "steps": 10},
            "loss": {"label_smoothing": 0.1},
            "mi": {"form": "bounded", "schedule": "joint"},
            "optim": {
                "epochs": 40,
                "batch_size": 128,
                "lr": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "onecycle",
                "ema": 0.999,
            },
            "evaluation": {"steps": 40},
            "scaling": {"precision": "bf16", "channels_last": True},
        },
    ),
    "paper-cifar10-linf": Recipe(
        "NAMID as in the paper: CIFAR-10, ResNet-18, L_inf 8/255, staged, 100 epochs",
        _paper_settings("cifar10", "linf", 8 / 255),
    ),
    "paper-cifar10-vgg19": Recipe(
        "the same with VGG-19; paper-cifar10-vgg19-at is the surrogate for black-box transfer",
        {**_paper_settings("cifar10", "linf", 8 / 255), "model": {"name": "vgg19"}},
    ),
    "paper-cifar10-l2": Recipe(
        "NAMID as in the paper: CIFAR-10, ResNet-18, L2 0.5, staged, 100 epochs",
        _paper_settings("cifar10", "l2", 0.5),
    ),
    "paper-tinyimagenet-linf": Recipe(
        "NAMID as in the paper: Tiny-ImageNet, ResNet-18, L_inf 8/255, staged, 100 epochs",
        _paper_settings("tiny-imagenet", "linf", 8 / 255),
    ),
    "paper-tinyimagenet-l2": Recipe(
        "NAMID as in the paper: Tiny-ImageNet, ResNet-18, L2 0.5, staged, 100 epochs",
        _paper_settings("tiny-imagenet", "l2", 0.5),
    ),
}

_OFF = {"weight": 0.0}


def _of_losses() -> dict[str, Recipe]:
    """Returns the variants of each loss: alone, and with the recipe's MI term."""
    alone, with_mi = {}, {}
    for name in losses():
        title, namid = loss_titles(name)
        alone[name] = Recipe(f"{title}, no MI", {"mi": _OFF, "loss": {"base": name}})
        if name != "at":  # which the recipes have
            text = f"the recipe's MI term with {title} ({namid})"
            with_mi[namid.lower().replace("_", "-")] = Recipe(text, {"loss": {"base": name}})
    return alone | with_mi


VARIANTS: dict[str, Recipe] = {
    "bounded": Recipe(
        "NAMID, the well-posed form, estimators trained with the classifier",
        {"mi": {"form": "bounded", "schedule": "joint"}},
    ),
    "paper": Recipe(
        "NAMID, Eq. 4-9 as printed, in the paper's stages",
        {"mi": {"form": "paper", "schedule": "staged"}},
    ),
    "released": Recipe(
        "NAMID as in the authors' code, with its BatchNorm statistics, in stages",
        {
            "mi": {"form": "released", "schedule": "staged"},
            "loss": {"batchnorm": "released"},
        },
    ),
    "wmim": Recipe(
        "AT and the MI of the whole adversarial image (the paper's baseline)",
        {"mi": {"form": "wmim", "schedule": "joint"}},
    ),
    "random": Recipe(
        "control: a random gradient at the logits, 0.2 of the adversarial loss's norm",
        {"mi": {"form": "random", "schedule": "joint"}},
    ),
    **_of_losses(),
    "at-clean-forward": Recipe(
        "control: AT, and an unused clean forward in the BatchNorm statistics",
        {"mi": _OFF, "loss": {"base": "at", "batchnorm": "mix"}},
    ),
    "mi-off": Recipe(
        "control: the recipe with weight 0; on AT it must equal at, bit for bit", {"mi": _OFF}
    ),
    "no-adversarial-mi": Recipe(
        "ablation i: without the adversarial MI", {"mi": {"adversarial": False}}
    ),
    "no-natural-mi": Recipe("ablation ii: without the natural MI", {"mi": {"natural": False}}),
    "no-difference": Recipe(
        "ablation iii: lambda = 0, cosine terms alone (recipes of the paper's form only)",
        {"mi": {"difference": 0.0}},
    ),
}


def _has_mi_term(variant: str, base: Mapping[str, Any]) -> bool:
    """Returns True if an MI term remains: `no-difference` needs a form with cosine terms."""
    mi = base.get("mi", {})
    form = FORMS[mi.get("form", "bounded")]
    return variant != "no-difference" or mi.get("cosine", form.get("cosine", 0.0)) > 0


_PARTS: dict[str, tuple[str, str | None]] = {base: (base, None) for base in BASE_RECIPES} | {
    f"{base}-{variant}": (base, variant) for base in BASE_RECIPES for variant in VARIANTS
}


def _whole(base: str, variant: str | None) -> Recipe:
    recipe = BASE_RECIPES[base]
    if variant is None:
        return recipe
    added = VARIANTS[variant]
    return Recipe(
        f"{base}: {added.description}",
        overlay(recipe.settings, added.settings),
    )


RECIPES: dict[str, Recipe] = {
    name: _whole(base, variant)
    for name, (base, variant) in _PARTS.items()
    if variant is None or _has_mi_term(variant, BASE_RECIPES[base].settings)
}
"""All recipes by full name, with variants."""


def on_recipe(recipe: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns a recipe's nested tree overlaid with `settings`, and a line if the recipe is unknown.

    A `mi.form` in `settings` is applied before a variant that sets no form, so that the method
    stays the variant's: `recipe=quickstart-at mi.form=paper` is AT.
    """
    if recipe not in RECIPES:
        return dict(settings), [_unknown_recipe(recipe)]
    base, variant = _PARTS[recipe]
    tree = dict(BASE_RECIPES[base].settings)
    if variant is not None:
        added = VARIANTS[variant].settings
        form = settings.get("mi", {}).get("form")
        if form is not None and "form" not in added.get("mi", {}):
            tree = overlay(tree, {"mi": {"form": form}})
        tree = overlay(tree, added)
    return overlay(tree, settings), []


def build_config(recipe: str, settings: Mapping[str, Any] | None = None) -> Config:
    """Returns the configuration of a recipe overlaid with `settings`, a nested tree.

    Raises:
        UserError: Lists an unknown recipe and every invalid value.
    """
    return validate(*on_recipe(recipe, settings or {}))


def _unknown_recipe(recipe: str) -> str:
    if recipe in _PARTS:
        return (
            f"recipe {recipe} has no MI term left, as its form has no cosine terms: "
            f"choose paper-cifar10-linf-no-difference, or recipe={_PARTS[recipe][0]} with "
            "mi.form=paper mi.difference=0"
        )
    known = (
        f"there are {', '.join(BASE_RECIPES)}, each also with a variant after its name: "
        f"-{', -'.join(VARIANTS)}"
    )
    return f"unknown recipe {recipe!r}: {did_you_mean(recipe, RECIPES, most=1, otherwise=known)}"
