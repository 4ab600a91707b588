"""Fresh probes: what a finished classifier's outputs tell of natural and adversarial patterns.

During training, an estimate says something about a classifier relative to critics that it was
trained against. A probe is fitted afterwards, on the frozen classifier, with a budget that is the
same for every method: so its numbers can be compared, also with those of plain AT. They are what
the paper's Fig. 4 shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from raymi.collectives import Collectives
from raymi.config import MIConfig, ProbeConfig
from raymi.counter_rng import permutation, random_key
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.data.batches import global_batch, share, share_sizes
from raymi.engine.estimator_task import EstimatorTask
from raymi.engine.learner import Learner, distributed
from raymi.engine.observers import MIObserver
from raymi.engine.pgd_evaluation import AttackedBlock, PGDAttack, evaluate_pgd
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.models.batchnorm import convert_batchnorm

Heartbeat = Callable[[int, int], None]

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
) -> dict[str, float]:
    """Trains both critics on a frozen classifier, and measures with them on images held out.

    Critics: cosine scores over 0.1, InfoNCE, Adam 1e-3, `probe.steps` batches of `probe.batch`
    training images, without augmentation, attacked as in `attack`. All of it is a function of the
    classifier, the data and the probe's settings: the run's seed and number of workers do not
    matter.

    Args:
        model: the classifier, left as it was.
        train, held_out: on the model's device.
        heartbeat: called with (done, of) after each block that is attacked and each step; what it
            raises ends the probe.
    Returns: `mi/natural_of_natural`, `..._selected` and so on (see `MIObserver`), in nats, each at
        most about log(probe.batch - 1).
    """
    device = train.images.device
    size = train.images.shape[-1]
    mi = MIConfig(hidden=probe.units, base_width=_BASE_WIDTH, depth=min(2, size.bit_length() - 1))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(random_key("probe"))
        natural, adversarial = (
            LocalDIM(
                num_classes, size, hidden=mi.hidden, base_width=mi.base_width, depth=mi.depth,
                score=mi.score, temperature=mi.temperature,
            )
            for _ in range(2)
        )  # fmt: skip
    critics = MIEstimators(natural, adversarial)
    if group.world_size > 1:
        convert_batchnorm(critics)
    critics.to(device)
    adam = torch.optim.Adam(critics.parameters(), lr=_LEARNING_RATE)
    learner = Learner(distributed(EstimatorTask(critics, mi, group), group, device), adam)
    crafted = _Crafted(group)
    total = len(train) + probe.steps
    report = heartbeat or (lambda done, of: None)

    evaluate_pgd(
        model,
        train,
        attack,
        group,
        block=probe.batch * group.world_size,
        observers=[crafted],
        heartbeat=lambda done, _: report(done, total),
    )
    x_adv, logits, logits_adv = (torch.cat(parts) for parts in crafted.parts)
    critics.train()
    batches = _batches(len(train), probe.batch, probe.steps)
    for step, everyone in enumerate(batches):
        index = share(everyone, group.rank, group.world_size).to(device)
        loss, _ = learner.task(
            to_unit(train.images[index]),
            x_adv[index],
            logits[index],
            logits_adv[index],
            train.labels[index],
            share_sizes(len(everyone), group.world_size),
        )
        learner.step(loss)
        report(len(train) + step + 1, total)

    observer = MIObserver(critics, mi, group, probe.batch)
    evaluate_pgd(model, held_out, attack, group, block=probe.batch, observers=[observer])
    return observer.results()


class _Crafted:
    """Keeps adversarial samples and both outputs of all workers, in the order of the images."""

    def __init__(self, group: Collectives) -> None:
        self.group = group
        self.parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def see(self, block: AttackedBlock) -> None:
        kept = (block.x_adv, block.logits, block.logits_adv)
        for part, values in zip(self.parts, kept, strict=True):
            part.append(self.group.gather(values.contiguous(), block.sizes))

    def results(self) -> dict[str, float]:
        """Nothing to measure."""
        return {}


def _batches(num: int, size: int, steps: int) -> Iterator[Tensor]:
    """`steps` full batches of min(size, num) samples, in epochs of a random order each."""
    size = min(size, num)
    per_epoch = num // size
    for step in range(steps):
        epoch, k = divmod(step, per_epoch)
        yield global_batch(permutation(random_key("probe", epoch), num), size, k)
