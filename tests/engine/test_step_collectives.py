"""Number of calls between workers in a training step, each of which costs latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from raymi.benchmarks.arms import AT, JOINT, NO_ATTACK, arm_config, trainee
from raymi.collectives import ProcessGroup
from raymi.config import Config
from raymi.recipes import BASE_RECIPES

QUICKSTART = BASE_RECIPES["quickstart"].settings
SMALL = {**NO_ATTACK, "optim.batch_size": 6, "mi.hidden": 8, "mi.base_width": 4}
RESNET = {"model.name": "resnet18", "model.depth": None}
ONLY_MI = {"scaling.sync_batchnorm": False}


class Calls(TorchDispatchMode):
    """Counter of the collectives that are called inside, also by DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: Counter[str] = Counter()
        self.asynchronous: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            waits = any(argument is False for argument in args)  # async_op, by default true
            (self.blocking if waits else self.asynchronous)[func._opname] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def group() -> Iterator[ProcessGroup]:
    """The first of three workers, of which the others do not exist: results are arbitrary."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    yield ProcessGroup()
    dist.destroy_process_group()


def calls_of_a_step(group: ProcessGroup, arm: str, settings: dict[str, Any]) -> Calls:
    """The collectives of the second step, with the final buckets of DDP."""
    config = arm_config(Config.model_validate(QUICKSTART), arm, {**SMALL, **settings})
    made = trainee(config, torch.device("cpu"), group)
    made.state.step(next(made.batches))
    with Calls() as calls:
        made.state.step(next(made.batches))
    return calls


@pytest.mark.parametrize(
    ("arm", "settings", "number"),
    [
        pytest.param(AT, {}, 6, id="AT of the quickstart"),
        pytest.param(JOINT, {}, 27, id="NAMID of the quickstart"),
        pytest.param(AT, RESNET, 40, id="AT of ResNet-18"),
        pytest.param(JOINT, RESNET, 78, id="NAMID of ResNet-18"),
        pytest.param(JOINT, ONLY_MI, 10, id="MI alone"),
    ],
)
def test_a_step_waits_for_other_workers_as_often_as_is_known(group, arm, settings, number):
    """The gradients of each module are one more call, which does not wait."""
    calls = calls_of_a_step(group, arm, settings)
    assert calls.blocking.total() == number
    assert calls.asynchronous["allreduce_"] == (1 if arm == AT else 2)
