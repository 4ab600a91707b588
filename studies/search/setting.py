"""Settings of the study: the space, the recipe and both searches."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from raymi.counter_rng import random_key
from raymi.overrides import nest
from raymi.recipes import on_recipe
from raymi.tuning.settings import TuneConfig
from raymi.tuning.space import Space
from raymi.tuning.sweep_folder import Definition

COMMAND = "python -m studies.search"
RANDOM, TPE = "random search", "TPE+ASHA"
SEARCHES = {RANDOM: TuneConfig(search="random", scheduler="none"), TPE: TuneConfig()}
"""Options of each search; TPE+ASHA has the defaults of `raymi.tune`."""


class Setting(BaseModel):
    """A space over a recipe with settings (keys of `Config`).

    Attributes:
        trials: number of trials of random search.
        training_seed: seed of all trials of both searches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: Space
    recipe: str
    settings: dict[str, Any]
    trials: int
    training_seed: int = 0

    @property
    def budget(self) -> int:
        """Number of trial-epochs of each search."""
        tree, _ = on_recipe(self.recipe, nest(self.settings))
        return self.trials * int(tree["optim"]["epochs"])

    def definition(self, search: str, seed: int) -> Definition:
        """Returns the sweep of one search; searches of one seed draw independently."""
        return Definition(
            id=f"{search} {seed}",
            command=COMMAND,
            space=self.space,
            recipe=self.recipe,
            settings=self.settings,
            seeds=(random_key("search", search, seed) % 2**31,),
            tune=SEARCHES[search],
        )


SETTING = Setting(
    space=Space(
        name="rates",
        description="How strong the MI terms are, and the rates that decide a short run",
        parameters={
            "optim.lr": {"log": (0.003, 1.0)},
            "optim.weight_decay": {"log": (1e-5, 0.03)},
            "mi.balance": {"log": (0.02, 1.0)},
            "mi.temperature": {"log": (0.03, 0.5)},
        },
    ),
    recipe="quickstart",
    settings={
        "data.image_size": 8,
        "data.val_fraction": 0.4,
        "model.width": 0.5,
        "attack.steps": 2,
        "mi.hidden": 16,
        "mi.base_width": 8,
        "mi.depth": 1,
        "optim.epochs": 9,
        "optim.schedule": "multistep",
        "validation.steps": 2,
        "checkpoint.every": 9,
        "scaling.workers": 1,
        "scaling.use_gpu": "false",
        "scaling.channels_last": False,
    },
    trials=16,
)
"""Chosen with search seeds that are not measured: cheap, and with settings that matter."""
