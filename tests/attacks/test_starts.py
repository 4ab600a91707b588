"""Starts of the training attack, and their configuration."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import gaussian_start, random_start, start_of
from raymi.attacks.settings import AttackConfig
from raymi.collectives import Collectives, Shard
from raymi.config import Config
from raymi.engine.step import Attacker

KEY = 5


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 4, 4, generator=generator)
    return x, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(10, 16)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Tanh(), nn.Linear(12, 3))


def test_starts_equal_their_definitions(batch):
    x, _, index = batch
    assert start_of("image", x, 0.1, "l2", KEY, index) is None
    ball = start_of("ball", x, 0.1, "l2", KEY, index)
    assert torch.equal(ball, random_start(x, 0.1, "l2", KEY, index))
    near = start_of("gaussian", x, 0.1, "l2", KEY, index)
    assert torch.equal(near, gaussian_start(x, KEY, index))


@pytest.mark.parametrize("start", ["ball", "gaussian", "image"])
@pytest.mark.parametrize("projection", ["ball-first", "box-first"])
def test_training_samples_follow_the_configuration(model, batch, start, projection):
    x, y, index = batch
    attack = AttackConfig(norm="l2", eps=0.9, steps=3, start=start, projection=projection)
    x_adv = Attacker(model, attack, "ce", nullcontext)(x, y, Shard((6,), Collectives(), index, KEY))
    begin = start_of(start, x, 0.9, "l2", KEY, index)
    settings = {"eps": 0.9, "alpha": 0.225, "steps": 3, "norm": "l2", "projection": projection}
    assert torch.equal(x_adv, pgd(model, x, y, **settings, start=begin))
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= 0.9 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"start": "image", "objective": "kl"}, "KL has no gradient at the image itself"),
        ({"start": "gaussian", "steps": 0}, "got gaussian: only a step"),
        ({"start": "corner"}, "attack.start"),
    ],
)
def test_invalid_starts_are_refused(attack, message):
    with pytest.raises(ValidationError, match=message):
        Config(attack=attack)


def test_without_steps_from_the_image_samples_are_clean(model, batch):
    x, y, index = batch
    attack = AttackConfig(steps=0, start="image")
    assert torch.equal(
        Attacker(model, attack, "ce", nullcontext)(x, y, Shard((6,), Collectives(), index, KEY)), x
    )
