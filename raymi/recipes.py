"""Recipes: named complete configurations, as changes of the defaults of `raymi.config`.

`--help recipe=NAME` prints hardware, time, accuracy and command. A base recipe sets data, model,
threat model and length of training; a variant, added to its name
(`quickstart-at`), sets the method. Variants of a recipe differ in the method only, so that
`python -m raymi.compare` can compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymi.config import Config
from raymi.data.settings import DATASETS
from raymi.errors import UserError, did_you_mean
from raymi.losses.registry import loss_titles, losses
from raymi.mi.settings import form_defaults
from raymi.overrides import DEPENDENT, examine, flatten, nest, overlay, validate
from raymi.recipe_files import SUFFIX, read_recipe_file

DEFAULT = "quickstart"
"""Recipe without any other, and without data."""
RECIPES_BY_SIZE = (
    "for images of about 16x16 pixels quickstart, for 32x32 cifar10-cpu or strong-cifar10-30, for "
    "larger ones photos"
)
"""Advice for data without a recipe of their own."""


@dataclass(frozen=True)
class Recipe:
    """Settings that replace defaults or those of a recipe, and facts about training with them.

    Attributes:
        description: one line.
        settings: nested tree.
        hardware: that it is made for.
        time: of a training on it.
        accuracy: on test images, clean and under PGD-40.
    """

    description: str
    settings: Mapping[str, Any]
    hardware: str = "a GPU"
    time: str = "not measured"
    accuracy: str = "not measured"


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


def _strong_settings(data: str, epochs: int, ema: float) -> dict[str, Any]:
    """Returns the settings of AT with averaged weights of the FastAT benchmark.

    Published for CIFAR-10 with 100 epochs, 3 seeds: AutoAttack 50.49 ± 0.15 %, clean 82.36 %
    (without averaging: AutoAttack 44.33 %). The average spans 1 / (1 - ema) steps, of which an
    epoch of CIFAR has 352: 6 of 100 epochs with 0.9995, 3 of 30 with 0.999.

    Source: arXiv 2604.22853.
    """
    return {
        "data": {"name": data},
        "model": {"name": "resnet18"},
        "attack": {"norm": "linf", "eps": 8 / 255, "alpha": 2 / 255, "steps": 10},
        "loss": {"label_smoothing": 0.4},
        "mi": {"form": "bounded", "schedule": "joint"},
        "optim": {
            "epochs": epochs,
            "batch_size": 128,
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "onecycle",
            "ema": ema,
        },
        "evaluation": {"steps": 40},
        "scaling": {"precision": "bf16", "channels_last": True},
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
        hardware="2 CPU cores",
        time="about two minutes",
        accuracy="clean 98.6 ± 0.2 %, PGD-40 71.2 ± 0.9 % (mean of 3 seeds)",
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
        hardware="2 CPU cores",
        time="about ten minutes",
        accuracy="clean 45.2 %, PGD-40 30.2 % (1 seed, 2,000 images)",
    ),
    "strong-cifar10": Recipe(
        "NAMID on CIFAR-10 with a strong baseline: ResNet-18, averaged weights, 100 epochs, a GPU",
        _strong_settings("cifar10", 100, 0.9995),
    ),
    "strong-cifar10-30": Recipe(
        "the same in 30 epochs",
        _strong_settings("cifar10", 30, 0.999),
    ),
    "strong-cifar100": Recipe(
        "the same on CIFAR-100, 100 epochs",
        _strong_settings("cifar100", 100, 0.9995),
    ),
    "photos": Recipe(
        "NAMID on your own images (data.root=FOLDER), 64x64 pixels, ResNet-18, 40 epochs, a GPU",
        {
            "data": {"name": "folder", "image_size": 64, "crop_padding": 8},
            "model": {"name": "resnet18"},
            "attack": {"norm": "linf", "eps": 8 / 255, "alpha": 2 / 255, "steps": 10},
            "mi": {"form": "bounded", "schedule": "joint", "depth": 3},
            "optim": {"epochs": 40, "batch_size": 128, "lr": 0.1, "schedule": "onecycle"},
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
_AWP = {"awp": 0.005}
_UNSMOOTHED = {"label_smoothing": 0.0}


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
    "teacher": Recipe(
        "KL divergences from the output of an averaged classifier, without estimators",
        {"mi": {"form": "teacher"}},
    ),
    "teacher-awp": Recipe(
        "teacher, with adversarial weight perturbation (AWP)",
        {"mi": {"form": "teacher"}, "optim": _AWP},
    ),
    "adr": Recipe(
        "AT on labels refined by an averaged classifier (ADR), in place of label smoothing",
        {"mi": {"form": "adr"}, "loss": _UNSMOOTHED},
    ),
    "adr-awp": Recipe(
        "ADR with AWP, its published schedules",
        {
            "mi": {
                "form": "adr",
                "weight": "cosine:0.7:0.85",
                "teacher_temperature": "cosine:2.5:1.5",
            },
            "loss": _UNSMOOTHED,
            "optim": _AWP,
        },
    ),
    "js": Recipe(
        "Jensen-Shannon divergence of natural and adversarial output, without estimators",
        {"mi": {"form": "js"}},
    ),
    **_of_losses(),
    "at-awp": Recipe("AT with AWP, no MI", {"mi": _OFF, "loss": {"base": "at"}, "optim": _AWP}),
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
    form = form_defaults(mi.get("form", "bounded"))
    return variant != "no-difference" or mi.get("cosine", form.get("cosine", 0.0)) > 0


_PARTS: dict[str, tuple[str, str | None]] = {base: (base, None) for base in BASE_RECIPES} | {
    f"{base}-{variant}": (base, variant) for base in BASE_RECIPES for variant in VARIANTS
}


_MEASURED = {
    "quickstart-at": "clean 98.6 ± 0.1 %, PGD-40 71.3 ± 0.3 %",
    "quickstart-mi-off": "clean 98.6 ± 0.1 %, PGD-40 71.3 ± 0.3 %",
    "quickstart-at-clean-forward": "clean 98.4 ± 0.2 %, PGD-40 70.5 ± 0.5 %",
    "quickstart-random": "clean 98.4 ± 0.1 %, PGD-40 71.2 ± 0.3 %",
    "quickstart-bounded": "clean 98.5 ± 0.1 %, PGD-40 71.3 ± 0.5 %",
    "quickstart-released": "clean 96.5 ± 0.5 %, PGD-40 65.5 ± 1.2 %",
    "quickstart-paper": "clean 10.5 ± 0.2 %, PGD-40 9.9 ± 0.2 %",
}
"""Means of 10 seeds on the test images (docs/results.md)."""


def _whole(base: str, variant: str | None) -> Recipe:
    recipe = BASE_RECIPES[base]
    if variant is None:
        return recipe
    added = VARIANTS[variant]
    measured = _MEASURED.get(f"{base}-{variant}")
    return Recipe(
        f"{base}: {added.description}",
        overlay(recipe.settings, added.settings),
        recipe.hardware,
        "not measured",
        "not measured" if measured is None else f"{measured} (mean of 10 seeds)",
    )


RECIPES: dict[str, Recipe] = {
    name: _whole(base, variant)
    for name, (base, variant) in _PARTS.items()
    if variant is None or _has_mi_term(variant, BASE_RECIPES[base].settings)
}
"""All recipes by full name, with variants."""


def on_recipe(recipe: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns a recipe's nested tree overlaid with `settings`, and a line for each problem of it.

    A `mi.form` in `settings` is applied before a variant that sets no form, so that the method
    stays the variant's: `recipe=quickstart-at mi.form=paper` is AT.

    Args:
        recipe: name in `RECIPES`, or path of a recipe file.
        settings: nested tree.
    """
    name, tree, problems = named_recipe(recipe, settings)
    return (tree if problems and name not in RECIPES else _on_named(name, tree)), problems


def _on_named(recipe: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    base, variant = _PARTS[recipe]
    tree = dict(BASE_RECIPES[base].settings)
    if variant is not None:
        added = VARIANTS[variant].settings
        form = settings.get("mi", {}).get("form")
        if form is not None and "form" not in added.get("mi", {}):
            tree = overlay(tree, {"mi": {"form": form}})
        tree = overlay(tree, added)
    return overlay(tree, settings)


def named_recipe(
    recipe: str | None, settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any], list[str]]:
    """Resolves a recipe file, or chooses the recipe that fits the data.

    Args:
        recipe: name in `RECIPES`, or path of a recipe file; None: the first recipe for the data.
        settings: nested tree.

    Returns:
        A name, `settings` laid over the file's, and a line for each problem.
    """
    if recipe is None:
        recipe, problems = _for_data(settings.get("data", {}))
        return recipe, dict(settings), problems
    if not recipe.endswith(SUFFIX):
        return recipe, dict(settings), [] if recipe in RECIPES else [_unknown_recipe(recipe)]
    try:
        name, layers = read_recipe_file(recipe)
    except UserError as error:
        return recipe, dict(settings), [str(error)]
    if name not in RECIPES:
        return recipe, dict(settings), [f"{layers[0].path}: {_unknown_recipe(name)}"]
    base = flatten(_on_named(name, {}))
    chosen = {key: base[key] for key in DEPENDENT if key in base}  # so that others drop keys
    tree, problems = nest(chosen), []
    for path, layer in layers:
        added = overlay(tree, layer)
        wrong = examine(_on_named(name, added))[1]
        problems += [f"{path}: {line}" for line in wrong]
        tree = tree if wrong else added
    flat = flatten(overlay(tree, settings))
    unchanged = {key for key, value in chosen.items() if flat[key] == value}
    return name, nest({k: v for k, v in flat.items() if k not in unchanged}), problems


def _for_data(data: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Returns the first recipe for a data set, and a line if none fits."""
    name, root = data.get("name"), data.get("root")
    if name is None and root is not None:
        return DEFAULT, [
            f"data.root={root} without data.name and recipe: the digits of {DEFAULT} read no "
            "files; add data.name=folder or data.name=npz for your own images, or recipe=NAME"
        ]
    wanted = str(name or "digits")
    if wanted == "npz" or ":" in wanted:  # own images
        wanted = "folder"
    for recipe, base in BASE_RECIPES.items():
        if base.settings["data"]["name"] == wanted:
            return recipe, []
    if wanted not in DATASETS:
        return DEFAULT, []
    return DEFAULT, [f"no recipe is made for data.name={name}: add recipe=NAME; {RECIPES_BY_SIZE}"]


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
