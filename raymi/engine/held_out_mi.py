"""MI of patterns and outputs, estimated by a critic on pairs that it has not seen.

The training pairs are split: the critic fits one part and is stopped by the other, and a third set,
the held-out pairs, gives the estimate. A critic that is fixed before it sees the held-out pairs
makes InfoNCE a lower bound in expectation, for any critic (Poole et al. 2019, Sec. 2.3).
Leave-one-out Donsker-Varadhan is none: the log of a mean of few terms is too small on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raymi.collectives import Collectives, Shard
from raymi.config import ProbeConfig
from raymi.counter_rng import permutation, random_key, uniform
from raymi.data.augment import random_crop
from raymi.data.batches import global_batch, shard_of
from raymi.engine.context import StopReason
from raymi.engine.learner import Learner, distributed
from raymi.mi.estimators import LocalDIM
from raymi.models.batchnorm import convert_batchnorm
from raymi.models.ema import WeightEMA
from raymi.models.modes import evaluation_mode

_LEARNING_RATE = 1e-3
_AVERAGE = 0.97
"""Decay of the critic's averaged weights, which give all estimates."""
_CHECKS = 20
"""Estimates on the stopping part."""
_SCALES = (0.25, 0.5, 0.75, 1.0)
"""Factors of the scores, chosen with the step: small ones for a critic that is too sure."""


class Pairs(NamedTuple):
    """Patterns (N, C, H, W) and outputs (N, K) of the same images."""

    patterns: Tensor
    outputs: Tensor

    def of(self, index: Tensor) -> Pairs:
        """Returns the pairs of some images."""
        return Pairs(self.patterns[index], self.outputs[index])

    def shuffled(self) -> Pairs:
        """Returns each pattern with the output of a random image, so that their MI is 0."""
        order = permutation(random_key("probe", "shuffle"), len(self.outputs))
        return Pairs(self.patterns, self.outputs[order.to(self.outputs.device)])


def held_out_mi(
    train: Pairs,
    held_out: Pairs,
    probe: ProbeConfig,
    group: Collectives,
    beat: Callable[[int], StopReason | None] = lambda steps: None,
) -> float | StopReason:
    """Estimates the MI of pattern and output from below.

    The critic scores whole patterns. It sees each pattern cropped at random and mixed with the
    pattern of another image, in shares that its loss weights both outputs by (Zhang et al. 2018),
    since it would memorise a thousand pairs otherwise. After each twentieth of the steps, its
    averaged weights and a factor of its scores are kept if they raise InfoNCE on the stopping part,
    a fifth of the training pairs; without any such rise for half of the steps it ends early.

    Args:
        train: pairs to fit and to stop on, on the critic's device.
        held_out: pairs of the estimate.
        probe: budget and size.
        group: the workers.
        beat: called with the number of steps just done; a reason that it returns ends the
            estimation.

    Returns:
        InfoNCE in nats, at most log(2 `probe.batch`); 0 for a critic that never raised it above 0
        on the stopping part. Or the reason of `beat`.

    Source: InfoNCE of van den Oord et al. 2018, Eq. 4.
    """
    device, num = train.patterns.device, len(train.outputs)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random_key("probe"))
        critic = _Critic(train, probe.units)
    if group.world_size > 1:
        convert_batchnorm(critic)
    critic.to(device)
    adam = torch.optim.Adam(critic.parameters(), lr=_LEARNING_RATE)
    learner = Learner(distributed(critic, group, device), adam)
    average = WeightEMA(critic, _AVERAGE)
    order = permutation(random_key("probe", "split"), num).to(device)
    stopping, fitted = train.of(order[: num // 5]), train.of(order[num // 5 :])
    padding = max(1, train.patterns.shape[-1] // 8)

    def cropped(index: Tensor, step: int) -> Tensor:
        return random_crop(fitted.patterns[index], random_key("crop", step), index, padding)

    best, scale, last = 0.0, 0.0, 0
    weights: dict[str, Tensor] | None = None
    for step, everyone in enumerate(_batches(len(fitted.outputs), probe.batch, probe.steps)):
        shard = shard_of(everyone.to(device), group)
        own, other = shard.index, shard_of(everyone.roll(1).to(device), group).index
        part = uniform(random_key("mix", step), own)
        mixing = part[:, None, None, None]
        mixed = mixing * cropped(own, step) + (1 - mixing) * cropped(other, step)
        learner.step(learner.task(mixed, fitted.outputs[own], fitted.outputs[other], part, shard))
        average.update(critic)
        if (step + 1) % max(1, probe.steps // _CHECKS) == 0:
            values = _infonce(average.model, stopping, _SCALES, probe.batch, group)
            for value, factor in zip(values, _SCALES, strict=True):
                if value > best:
                    best, scale, last = value, factor, step
                    weights = deepcopy(average.model.state_dict())
        if (stop := beat(1)) is not None:
            return stop
        if step - last > probe.steps // 2:
            beat(probe.steps - step - 1)
            break
    if weights is None:
        return 0.0
    average.model.load_state_dict(weights)
    return _infonce(average.model, held_out, (scale,), probe.batch, group)[0]


class _Critic(nn.Module):
    """Estimator whose scores are means over locations; its forward computes a training loss."""

    def __init__(self, pairs: Pairs, units: int) -> None:
        super().__init__()
        _, channels, _, size = pairs.patterns.shape
        self.estimator = LocalDIM(
            pairs.outputs.shape[1], size, hidden=units, base_width=16,
            depth=min(4, size.bit_length() - 1), channels=channels,
        )  # fmt: skip

    def features(self, patterns: Tensor) -> Tensor:
        """Maps (b, C, H, W) to (b, units)."""
        return self.estimator.local_features(patterns).mean(dim=2)

    def forward(
        self, mixed: Tensor, outputs: Tensor, others: Tensor, part: Tensor, shard: Shard
    ) -> Tensor:
        """Computes the loss of mixed patterns (b, C, H, W): `part` (b,) of the first output."""
        features = self.features(mixed)
        own, other = (
            _nats(self.estimator.global_features(z), features, shard) for z in (outputs, others)
        )
        return -shard.mean(part * own + (1 - part) * other)


def _nats(outputs: Tensor, features: Tensor, shard: Shard) -> Tensor:
    """Computes InfoNCE (b,) of own outputs (b, units) among the features of the global batch."""
    scores = outputs @ shard.gather(features).T
    return (outputs * features).sum(dim=1) - scores.logsumexp(dim=1) + math.log(shard.num)


@torch.no_grad()
def _infonce(
    critic: nn.Module, pairs: Pairs, scales: tuple[float, ...], batch: int, group: Collectives
) -> list[float]:
    """Computes mean InfoNCE in nats for each factor of the scores.

    The negatives of a pair are its block. All pairs count: blocks have `batch` pairs or a few more,
    or all pairs if these are fewer.
    """
    assert isinstance(critic, _Critic)
    num = len(pairs.outputs)
    totals = torch.zeros(len(scales), dtype=torch.float64, device=pairs.outputs.device)
    with evaluation_mode(critic):
        for block in torch.arange(num).tensor_split(max(1, num // batch)):
            shard = shard_of(block.to(pairs.outputs.device), group)
            own = pairs.of(shard.index)
            features = critic.features(own.patterns)
            outputs = critic.estimator.global_features(own.outputs)
            nats = [_nats(scale * outputs, features, shard).sum() for scale in scales]
            totals += torch.stack(nats)
    return (group.sum(totals) / max(num, 1)).tolist()


def _batches(num: int, size: int, steps: int) -> Iterator[Tensor]:
    """Yields `steps` full batches of min(size, num) samples, each epoch in a random order."""
    size = min(size, num)
    per_epoch = num // size
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        yield global_batch(permutation(random_key("probe", epoch), num), size, k)
