"""Digests follow code and data of an object, and are the same in every process."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raymi.content_digest import content_digest

FACTOR = 2


def source(body: str, name: str = "made") -> Any:
    """Runs code as a cell of a notebook does."""
    names: dict[str, Any] = {"__name__": "__main__", "nn": nn}
    exec(body, names)
    return names[name]


FUNCTION = "def made(x):\n    return x + {}\n"
HELPER = "def helper(x):\n    return x * {}\ndef made(x):\n    return [helper(y) for y in x]\n"
GLOBAL = "SIZE = {}\ndef made(x):\n    return lambda y: x + SIZE\n"
CLASS = "class made(nn.Module):\n    def forward(self, x):\n        return x.relu() + {}\n"
BASE = "class Base:\n    def f(self):\n        return {}\nclass made(Base):\n    pass\n"
DEFAULT = "def made(x={}):\n    return x\n"


SETTINGS = """
from raymi.losses import AdversarialLoss
class made(AdversarialLoss):
    class Settings(AdversarialLoss.Settings):
        beta: float = {}
"""


@pytest.mark.parametrize("code", [FUNCTION, HELPER, GLOBAL, CLASS, BASE, DEFAULT, SETTINGS])
def test_digest_follows_the_code(code: str) -> None:
    one, same, other = (source(code.format(value)) for value in (1, 1, 2))
    assert content_digest(one) == content_digest(same)
    assert content_digest(one) != content_digest(other)


def closure(value: object) -> Callable[[], object]:
    return lambda: value


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda value: value, (1, 1.0)),
        (lambda value: {"a": [value]}, (1, 2)),
        (lambda value: {value, "b", "c"}, ("a", "d")),
        (lambda value: torch.full((2, 3), value, dtype=torch.bfloat16), (1.0, 2.0)),
        (lambda value: np.full((2, 3), value), (1, 2)),
        (lambda value: torch.zeros(value), ((2, 3), (3, 2))),
        (closure, (1, 2)),
        (lambda value: functools.partial(closure, value), (1, 2)),
        (lambda value: nn.Conv2d(3, 4, 3, stride=value, bias=False).requires_grad_(), (1, 2)),
    ],
)
def test_digest_follows_the_data(make: Any, values: Any) -> None:
    def digest(value: object) -> str:
        torch.manual_seed(0)
        return content_digest(make(value))

    one, other = values
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def test_digest_follows_the_weights() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = content_digest(net)
    net[1].running_mean += 1
    assert content_digest(net) != before


def test_copies_of_instances_do_not_change_the_digest_of_a_class() -> None:
    for cls in (source(SETTINGS.format(1.0)), source(CLASS.format(1))):
        before, instance = content_digest(cls), cls()
        copied = copy.deepcopy(instance)
        assert content_digest(cls) == before
        assert content_digest(copied) == content_digest(instance)


def test_objects_may_refer_to_each_other() -> None:
    one: list[Any] = []
    one.append(one)
    assert content_digest(one) == content_digest(one)


def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from torch import nn; from raymi.content_digest import content_digest\n"
        "class Net(nn.Module):\n"
        "    names = {'a', 'b', 'c'}\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.layer = nn.Linear(2, 2); self.kind = str('relu')\n"
        "    def forward(self, x):\n"
        "        return getattr(self.layer(x), self.kind)()\n"
        "torch.manual_seed(0); print(content_digest(Net()), content_digest(Net))\n"
        + SETTINGS.format(1.0)
        + "print(content_digest(made), content_digest(made(beta=2.0)))"
    )
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
        ).stdout
        for env in environments
    )
    assert first == second
