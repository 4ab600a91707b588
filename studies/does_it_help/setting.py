"""Arms, seeds and settings of the study, fixed before its first run (README.md)."""

from __future__ import annotations

from typing import NamedTuple

REFERENCE = "at-average"
"""Arm with which the others are paired."""
FAST, PGD, AUTOATTACK = "fast", "pgd-40", "autoattack"
"""Names of the measured attacks; `FAST` is the primary one."""

NETWORK = (
    "recipe=cifar10-cpu-at", "data.limit=4000", "data.val_fraction=0.5", "model.width=0.5",
    "attack.steps=5", "attack.alpha=3/255",
    "data.flip=false", "data.crop_padding=0",
)  # fmt: skip
SCHEDULE = (
    "optim.batch_size=32", "lr=0.1", "optim.schedule=multistep", "optim.milestones=0.5,0.75",
)  # fmt: skip
LOGGED = ("validation.max_samples=1000", "validation.steps=10", "validation.every=6",
          "evaluation.steps=1", "evaluation.max_samples=100")  # fmt: skip
AVERAGED = ("ema=0.997",)
ARMS: dict[str, tuple[str, ...]] = {
    "at": (),
    REFERENCE: AVERAGED,
    "smooth-0.4": (*AVERAGED, "loss.label_smoothing=0.4"),
    "smooth-0.8": (*AVERAGED, "loss.label_smoothing=0.8"),
    "random": (*AVERAGED, "recipe=cifar10-cpu-random"),
    "bounded": (*AVERAGED, "recipe=cifar10-cpu-bounded"),
    "bounded-capped": (*AVERAGED, "recipe=cifar10-cpu-bounded", "mi.natural_cap=true"),
    "bounded-other": (*AVERAGED, "recipe=cifar10-cpu-bounded", "mi.negative_classes=other"),
    "teacher": (*AVERAGED, "recipe=cifar10-cpu-teacher"),
    "adr": (*AVERAGED, "recipe=cifar10-cpu-adr"),
    "js": (*AVERAGED, "recipe=cifar10-cpu-js"),
    "ikl": (*AVERAGED, "recipe=cifar10-cpu-ikl"),
    "trades": (*AVERAGED, "recipe=cifar10-cpu-trades"),
}
"""Settings of each arm beside the common ones; a later `recipe` replaces an earlier one."""


class Stage(NamedTuple):
    """Part of the study: all arms with the same images, epochs and seeds."""

    words: tuple[str, ...]
    epochs: int
    candidates: tuple[int, ...]
    seeds: tuple[int, ...]


STAGES = {
    "1": Stage((), 60, (16, 34, 60), (0, 1, 2)),
}
"""Stages by name; candidates are the epochs of which one is chosen on validation images."""
VALIDATION_IMAGES, TEST_IMAGES, AUTOATTACK_IMAGES = 1000, 2000, 500
EPS = 8 / 255


class Unit(NamedTuple):
    """Training and evaluation of an arm with a seed."""

    stage: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its run and its result."""
        return f"stage{self.stage}-{self.arm}-seed{self.seed}"

    def words(self) -> tuple[str, ...]:
        """Returns the settings of its training."""
        stage = STAGES[self.stage]
        given = dict(
            word.split("=", 1)
            for word in (*NETWORK, *SCHEDULE, *LOGGED, *stage.words, *ARMS[self.arm])
        )
        given |= {"epochs": str(stage.epochs), "seed": str(self.seed)}
        return tuple(f"{key}={value}" for key, value in given.items())


def units(stage: str) -> list[Unit]:
    """Returns the units of a stage: all arms of a seed before the next seed."""
    return [Unit(stage, arm, seed) for seed in STAGES[stage].seeds for arm in ARMS]
