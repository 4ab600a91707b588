"""PGD of raymi against that of torchattacks, with the same steps on the same network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor, nn

from raymi.benchmarks.arms import AT, Trainee, arm_config, trainee
from raymi.benchmarks.clock import Clock, interleaved, ratio
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section, number, skipped
from raymi.engine.step import Attacker
from raymi.engine.train_loader import Batch

THEIRS = "torchattacks.PGD"
_OPTIONS = {
    "raymi, plain": (False, False),
    "raymi, channels_last": (True, False),
    "raymi, fold_batchnorm": (False, True),
    "raymi, both": (True, True),
}
_TITLE = "Crafting against torchattacks: medians over the rounds (lowest to highest)"


def measure_crafting(plan: Plan) -> Section:
    """Times crafting with each of the options that change its speed."""
    if importlib.util.find_spec("torchattacks") is None:
        return skipped(_TITLE, "torchattacks is not installed")
    calls = crafters(plan)
    seconds = interleaved(calls, plan.rounds, Clock(plan.device))
    batch = plan.config.optim.batch_size
    rows, ratios = [], {}
    for name, each in seconds.items():
        found = ratio(seconds[THEIRS], each)
        ratios[name] = vars(found)
        target = ">= 1.15" if name == "raymi, both" else ""
        rows.append([name, number(1000 * median(each) / batch), str(found), target])
    attack = plan.config.attack
    return Section(
        _TITLE,
        ("crafter", "ms per sample", "times as fast", "aim"),
        rows,
        {"seconds_per_batch": seconds, "times_as_fast": ratios},
        (f"{attack.norm}, {attack.steps} steps from a random start, cross-entropy",),
    )


def crafters(plan: Plan) -> dict[str, Callable[[], Tensor]]:
    """Calls that craft one batch, on networks with the same weights."""
    calls: dict[str, Callable[[], Tensor]] = {}
    settings = {"attack.start": "ball", "attack.objective": "ce", "scaling.fold_batchnorm": False}
    for channels_last in (False, True):
        layout = {**settings, "scaling.channels_last": channels_last}
        made = trainee(arm_config(plan.config, AT, layout), plan.device)
        batch = next(made.batches)
        if not channels_last:
            calls[THEIRS] = _their_call(made, batch)
        for name, (in_layout, folded) in _OPTIONS.items():
            if in_layout == channels_last:
                calls[name] = _our_call(made, batch, folded)
    return {name: calls[name] for name in (THEIRS, *_OPTIONS)}


def _our_call(made: Trainee, batch: Batch, folded: bool) -> Callable[[], Tensor]:
    craft = Attacker(
        made.state.model, made.config.attack, "ce", made.state.autocast, fold_batchnorm=folded
    )
    return lambda: craft(batch.x, batch.y, batch.sample, 0)


def _their_call(made: Trainee, batch: Batch) -> Callable[[], Tensor]:
    import torchattacks

    attack = made.config.attack
    model: nn.Module = made.state.model
    kind: Any = torchattacks.PGD if attack.norm == "linf" else torchattacks.PGDL2
    theirs = kind(model, eps=attack.eps, alpha=attack.step_size, steps=attack.steps)

    def craft() -> Tensor:
        with made.state.autocast():
            return theirs(batch.x, batch.y)

    return craft
