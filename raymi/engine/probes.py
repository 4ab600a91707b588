"""Fresh MI estimators ("probes") on a finished classifier (the paper's Fig. 4).

An estimate of training is relative to the estimators that the classifier was trained against. A
probe is trained afterwards on the frozen classifier, with the same budget for every method, so its
estimates are comparable, also with plain AT.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raymi.collectives import Collectives
from raymi.config import ProbeConfig
from raymi.counter_rng import permutation, random_key
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.data.batches import global_batch, shard_of
from raymi.engine.block_metrics import MIEstimates
from raymi.engine.context import StopReason
from raymi.engine.learner import Learner, distributed
from raymi.engine.pgd_evaluation import AttackedBlock, Heartbeat, PGDAttack, evaluate_pgd
from raymi.fields import value_at
from raymi.mi.estimation import EstimatorTask
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.settings import MIConfig
from raymi.models.batchnorm import convert_batchnorm

_LEARNING_RATE = 1e-3
_BASE_WIDTH = 32


def probe_classifier(
    model: nn.Module,
    train: ImageSet,
    held_out: ImageSet,
    attack: PGDAttack,
    probe: ProbeConfig,
    group: Collectives,
    *,
    num_classes: int,
    heartbeat: Heartbeat | None = None,
) -> dict[str, float] | StopReason:
    """Trains both estimators on a frozen classifier and evaluates them on held-out images.

    Estimators: cosine scores over 0.1, InfoNCE, Adam 1e-3, `probe.steps` batches of `probe.batch`
    training images, without augmentation, under `attack`. The result is a function of the
    classifier, the data and the probe's settings, not of the run's seed or number of workers.

    Args:
        model: the classifier, which stays unchanged.
        train: training images, on the model's device.
        held_out: images of the estimates, on the model's device.
        attack: of both.
        probe: its settings.
        group: the workers.
        num_classes: K.
        heartbeat: called with (done, total) after each attacked block and each step; a reason that
            it returns ends the probe.

    Returns:
        `mi/natural_of_natural`, `..._selected` and so on (see `MIEstimates`) in nats, each at most
        about log(probe.batch - 1); or the reason of the heartbeat.
    """
    device = train.images.device
    size = train.images.shape[-1]
    mi = MIConfig(hidden=probe.units, base_width=_BASE_WIDTH, depth=min(2, size.bit_length() - 1))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random_key("probe"))
        natural, adversarial = (
            LocalDIM(
                num_classes, size, hidden=mi.hidden, base_width=mi.base_width, depth=mi.depth,
                score=mi.score, temperature=value_at(mi.temperature, 0.0),
            )
            for _ in range(2)
        )  # fmt: skip
    estimators = MIEstimators(natural, adversarial)
    if group.world_size > 1:
        convert_batchnorm(estimators)
    estimators.to(device)
    adam = torch.optim.Adam(estimators.parameters(), lr=_LEARNING_RATE)
    learner = Learner(distributed(EstimatorTask(estimators, mi), group, device), adam)
    attacked = _AttackedImages()
    total = len(train) + probe.steps
    report = heartbeat or (lambda done, of: None)

    outcome = evaluate_pgd(
        model,
        train,
        attack,
        group,
        block=probe.batch * group.world_size,
        metrics=[attacked],
        heartbeat=lambda done, _: report(done, total),
    )
    if isinstance(outcome, StopReason):
        return outcome
    x_adv, logits, logits_adv = (torch.cat(parts) for parts in attacked.parts)
    estimators.train()
    batches = _batches(len(train), probe.batch, probe.steps)
    for step, everyone in enumerate(batches):
        shard = shard_of(everyone.to(device), group)
        index = shard.index
        loss, _ = learner.task(
            to_unit(train.images[index]),
            x_adv[index],
            logits[index],
            logits_adv[index],
            train.labels[index],
            shard,
        )
        learner.step(loss)
        if (stop := report(len(train) + step + 1, total)) is not None:
            return stop

    estimates = MIEstimates(estimators, mi, group, probe.batch)
    evaluate_pgd(model, held_out, attack, group, block=probe.batch, metrics=[estimates])
    return estimates.compute()


class _AttackedImages:
    """Adversarial images and both outputs of all workers, in the order of the images."""

    def __init__(self) -> None:
        self.parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def update(self, block: AttackedBlock) -> None:
        tensors = (block.x_adv, block.logits, block.logits_adv)
        for part, values in zip(self.parts, tensors, strict=True):
            part.append(block.shard.gather(values.contiguous()))

    def compute(self) -> dict[str, float]:
        """Returns no values."""
        return {}


def _batches(num: int, size: int, steps: int) -> Iterator[Tensor]:
    """Yields `steps` full batches of min(size, num) samples, each epoch in a random order."""
    size = min(size, num)
    per_epoch = num // size
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        yield global_batch(permutation(random_key("probe", epoch), num), size, k)
