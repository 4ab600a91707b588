"""Probes estimate known MI: 0 within 0.05 nats, other values within 15 %, on unseen digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.collectives import Collectives, Shard
from raymi.config import ProbeConfig
from raymi.data import ImageSet, Splits, load_splits
from raymi.data.augment import to_unit
from raymi.engine.held_out_mi import Pairs, _nats, held_out_mi
from raymi.engine.pgd_evaluation import PGDAttack
from raymi.engine.probes import probe_classifier
from raymi.mi.bounds import donsker_varadhan, infonce

K = 10
ATTACK = PGDAttack("linf", 0.1, 0.025, 10)


@cache
def digits() -> Splits:
    """The quickstart's digits, at least 0.1 from black and white: so the box hides no image."""
    splits = load_splits("digits", image_size=16, val_fraction=0.15, limit=None)
    return replace(splits, train=inside(splits.train), val=inside(splits.val))


def inside(images: ImageSet) -> ImageSet:
    return replace(images, images=26 + (images.images * (203 / 255)).to(torch.uint8))


def kept_class(y: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Labels as one-hot rows (N, K), of which all but a share have a random wrong class."""
    other = (y + torch.randint(1, K, y.shape, generator=generator)) % K
    kept = torch.randperm(len(y), generator=generator) < round(share * len(y))
    return F.one_hot(torch.where(kept, y, other), K).float()


def nats(share: float) -> float:
    """MI of a label and a class that is kept with this probability."""
    parts = [share, *[(1 - share) / (K - 1)] * (K - 1)]
    return math.log(K) + sum(p * math.log(p) for p in parts if p > 0)


class KnownNetwork(nn.Module):
    """Classifier with chosen outputs, the same for an image and all that are near it.

    Its gradient is that of the sums of ten groups of pixels: PGD lowers group y and raises the
    others, so the adversarial pattern says y and nothing else. Without it ("blind"), the pattern is
    PGD's random start.
    """

    def __init__(self, images: Tensor, outputs: Tensor, blind: bool) -> None:
        super().__init__()
        self.images, self.outputs, self.blind = images.flatten(1), outputs, blind
        order = torch.randperm(images[0, 0].numel(), generator=torch.Generator().manual_seed(0))
        self.groups = F.one_hot(order % K, K).float().repeat(images.shape[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        near = torch.cdist(x.detach(), self.images).argmin(dim=1)
        sums = x @ self.groups * (0.0 if self.blind else 1.0)
        return self.outputs[near] + (sums - sums.detach())


def known_network(kind: str | float, seed: int, *, blind: bool) -> KnownNetwork:
    """A network whose output is noise, or the label kept with a probability."""
    generator = torch.Generator().manual_seed(seed)
    sets = (digits().train, digits().val)
    outputs = [
        torch.randn(len(one), K, generator=generator)
        if kind == "noise"
        else kept_class(one.labels, kind, generator)
        for one in sets
    ]
    images = torch.cat([to_unit(one.images) for one in sets])
    return KnownNetwork(images, torch.cat(outputs), blind)


def pattern_that_says_the_label(y: Tensor) -> Tensor:
    """The patterns (N, 3, 16, 16) that PGD finds for a `KnownNetwork` that is not blind."""
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    lowered = (order % K) == y[:, None]
    return torch.where(lowered, -0.1, 0.1).view(-1, 1, 16, 16).repeat(1, 3, 1, 1)


def labels() -> tuple[Tensor, Tensor]:
    return digits().train.labels, digits().val.labels


def estimate(pairs: list[Pairs], steps: int) -> float:
    beats: list[int] = []
    nats = held_out_mi(
        *pairs, ProbeConfig(steps=steps), Collectives(), lambda num: beats.append(num)
    )
    assert sum(beats) == steps, "also where it ends early"
    assert isinstance(nats, float)
    return nats


@pytest.mark.slow
def test_independent_outputs_are_estimated_at_0_nats():
    """Outputs that differ for each image, which a critic can memorise."""
    generator = torch.Generator().manual_seed(0)
    images = (to_unit(digits().train.images), to_unit(digits().val.images))
    pairs = [Pairs(x, torch.randn(len(x), K, generator=generator)) for x in images]
    assert estimate(pairs, 100) == pytest.approx(0, abs=0.05)


@pytest.mark.slow
def test_a_class_in_the_adversarial_pattern_is_found_and_lost_by_shuffling():
    generator = torch.Generator().manual_seed(0)
    pairs = [Pairs(pattern_that_says_the_label(y), kept_class(y, 1.0, generator)) for y in labels()]
    assert estimate(pairs, 100) == pytest.approx(nats(1.0), rel=0.15)
    assert estimate([one.shuffled() for one in pairs], 40) == pytest.approx(0, abs=0.05)


def test_infonce_is_at_most_the_mi_on_average_and_leave_one_out_is_not():
    """A class of three as pattern and as output, and the best critic: log 3 nats."""
    classes = torch.randint(3, (2000, 8), generator=torch.Generator().manual_seed(0))
    scores = -10.0 * (classes[:, :, None] != classes[:, None, :])

    def mean(bound: Callable[[Tensor], Tensor]) -> float:
        return float(torch.stack([bound(one[:, :, None]).mean() for one in scores]).mean())

    assert 0.8 * math.log(3) < mean(infonce) < math.log(3)
    assert mean(donsker_varadhan) > 1.1 * math.log(3)


def test_probes_compute_infonce():
    outputs, features = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
    expected = infonce((outputs @ features.T)[:, :, None])
    assert torch.allclose(_nats(outputs, features, Shard.alone(8)), expected, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "blind", "natural", "adversarial"),
    [
        ("noise", False, 0, 0),
        (0.5, False, nats(0.5), nats(0.5)),
        (0.7, False, nats(0.7), nats(0.7)),
        (1.0, False, nats(1.0), nats(1.0)),
        (1.0, True, nats(1.0), 0),
    ],
)
def test_probes_of_networks_of_known_mi(kind, blind, natural, adversarial):
    network, splits = known_network(kind, 0, blind=blind), digits()
    estimates = probe_classifier(
        network, splits.train, splits.val, ATTACK, ProbeConfig(), Collectives()
    )
    for name, estimate in estimates.items():
        truth = adversarial if name.startswith("mi/adversarial") else natural
        if name.endswith("_shuffled"):
            truth = 0
        assert estimate == pytest.approx(truth, abs=0.15 * truth or 0.05), name
