"""Steps of the same mathematics in two schedules: raymi's, and the one of the released code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from raymi.benchmarks.arms import NO_ATTACK, RELEASED, Trainee, arm_config, step_call, trainee
from raymi.benchmarks.clock import interleaved, ratio
from raymi.benchmarks.section import number
from raymi.commands.bench.command import planned
from raymi.commands.bench.options import requested
from raymi.config import Config
from raymi.errors import UserError
from raymi.formatting import markdown_table
from studies.released_schedule.naive import NaiveSchedule

_PLAIN = {
    "scaling.precision": "fp32",
    "scaling.channels_last": False,
    "scaling.fold_batchnorm": False,
    "scaling.compile": False,
}


def naive_trainee(config: Config, device: torch.device) -> Trainee:
    """Builds the networks of the naive schedule."""
    if config.attack.norm != "linf":
        raise UserError(f"expected attack.norm=linf, got {config.attack.norm}: set it")
    return trainee(arm_config(config, RELEASED, _PLAIN | NO_ATTACK), device)


def naive_schedule(made: Trainee, config: Config) -> NaiveSchedule:
    """Builds the naive schedule with the networks and the optimizer of an arm."""
    state = made.state
    assert state.estimators is not None
    assert state.classifier is not None
    optimizer = state.classifier.optimizer
    return NaiveSchedule(state.model, state.estimators, optimizer, config.attack, state.autocast)


def naive_step(config: Config, device: torch.device, *, crafting: bool) -> Callable[[], object]:
    """Returns a call that makes one step of the naive schedule, always on the same batch.

    Args:
        config: settings of the networks and the attack.
        device: where it trains.
        crafting: False: without the attack, x itself is x_adv.
    """
    made = naive_trainee(config, device)
    naive, batch = naive_schedule(made, config), next(made.batches)
    if crafting:
        return partial(naive.step, batch.x, batch.y)
    return partial(naive.step_on, batch.x, batch.x, batch.y)


def main(words: list[str]) -> int:
    """Times both schedules in turn and prints their ratio; takes the options of `raymi.bench`."""
    plan = planned(requested(words))
    torch.set_num_threads(plan.threads)
    images = plan.config.optim.batch_size
    rows: list[tuple[str, ...]] = [
        ("step", "released, ms per sample", "naive, ms per sample", "naive / released")
    ]
    for where, crafting in (("whole step", True), ("outside of crafting", False)):
        calls = {
            "released": step_call(plan.config, RELEASED, plan.device, crafting=crafting),
            "naive": naive_step(plan.config, plan.device, crafting=crafting),
        }
        seconds = interleaved(calls, plan.rounds)
        times = (number(1000 * median(seconds[name]) / images) for name in calls)
        rows.append((where, *times, str(ratio(seconds["naive"], seconds["released"]))))
    print(markdown_table(rows))
    return 0
