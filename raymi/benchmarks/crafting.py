"""Speed of raymi's PGD against torchattacks, with the same steps on the same network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor

from raymi.benchmarks.arms import AT, Trainee, arm_config, trainee
from raymi.benchmarks.clock import interleaved, ratio
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number, skipped
from raymi.engine.step import Attacker
from raymi.engine.train_loader import Batch

TORCHATTACKS = "torchattacks.PGD"
_OPTIONS = {
    "raymi, plain": (False, False),
    "raymi, channels_last": (True, False),
    "raymi, fold_batchnorm": (False, True),
    "raymi, both": (True, True),
}
_TITLE = "Crafting against torchattacks: medians over the rounds (lowest to highest)"


def measure_crafting(plan: Plan) -> Section:
    """Times attacks with each of the options that change their speed."""
    if importlib.util.find_spec("torchattacks") is None:
        return skipped(_TITLE, "torchattacks is not installed")
    seconds = interleaved(attack_calls(plan), plan.rounds)
    ratios = {name: ratio(seconds[TORCHATTACKS], each) for name, each in seconds.items()}
    batch = plan.config.optim.batch_size
    rows = [
        [name, number(1000 * median(each) / batch), str(ratios[name]), _target(name)]
        for name, each in seconds.items()
    ]
    attack = plan.config.attack
    return Section(
        _TITLE,
        ("attack", "ms per sample", "times as fast", "target"),
        rows,
        {
            "seconds_per_batch": seconds,
            "times_as_fast": {name: vars(value) for name, value in ratios.items()},
        },
        (f"{attack.norm}, {attack.steps} steps from a random start, cross-entropy",),
    )


def attack_calls(plan: Plan) -> dict[str, Callable[[], Tensor]]:
    """Returns calls that attack one batch, on networks with the same weights."""
    settings = {"attack.start": "ball", "attack.objective": "ce", "scaling.fold_batchnorm": False}
    made = {
        channels_last: trainee(
            arm_config(plan.config, AT, {**settings, "scaling.channels_last": channels_last}),
            plan.device,
        )
        for channels_last in (False, True)
    }
    batches = {layout: next(one.batches) for layout, one in made.items()}
    calls = {TORCHATTACKS: _torchattacks_call(made[False], batches[False])}
    for name, (layout, folded) in _OPTIONS.items():
        calls[name] = _raymi_call(made[layout], batches[layout], folded)
    return calls


def _target(name: str) -> str:
    return ">= 1.15" if name == "raymi, both" else ""


def _raymi_call(made: Trainee, batch: Batch, folded: bool) -> Callable[[], Tensor]:
    state = made.state
    attack = Attacker(state.model, made.config.attack, "ce", state.autocast, fold_batchnorm=folded)
    return lambda: attack(batch.x, batch.y, batch.shard)


def _torchattacks_call(made: Trainee, batch: Batch) -> Callable[[], Tensor]:
    import torchattacks

    settings = made.config.attack
    kind: Any = torchattacks.PGD if settings.norm == "linf" else torchattacks.PGDL2
    attack = kind(
        made.state.model, eps=settings.eps, alpha=settings.step_size, steps=settings.steps
    )

    def call() -> Tensor:
        with made.state.autocast():
            return attack(batch.x, batch.y)

    return call
