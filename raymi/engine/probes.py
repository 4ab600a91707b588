"""Fresh MI estimators ("probes") on a finished classifier (the paper's Fig. 4).

An estimate of training is relative to the estimators that the classifier was trained against. A
probe is trained afterwards on the frozen classifier, with the same budget for every method, so its
estimates are comparable, also with plain AT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymi.collectives import Collectives
from raymi.config import ProbeConfig
from raymi.data import ImageSet
from raymi.data.augment import to_unit
from raymi.engine.context import StopReason
from raymi.engine.held_out_mi import Pairs, held_out_mi
from raymi.engine.pgd_evaluation import AttackedBlock, Heartbeat, PGDAttack, evaluate_pgd


def probe_classifier(
    model: nn.Module,
    train: ImageSet,
    held_out: ImageSet,
    attack: PGDAttack,
    probe: ProbeConfig,
    group: Collectives,
    *,
    heartbeat: Heartbeat | None = None,
) -> dict[str, float] | StopReason:
    """Estimates natural and adversarial MI of both outputs of a frozen classifier.

    Each estimate has a critic of its own (see `held_out_mi`), and a baseline: the same with outputs
    shuffled over images, where the MI is 0. The result is a function of the classifier, the data
    and the probe's settings, not of the run's seed or number of workers.

    Args:
        model: the classifier, which stays unchanged.
        train: training images, on the model's device.
        held_out: images of the estimates, on the model's device.
        attack: of both.
        probe: its settings.
        group: the workers.
        heartbeat: called with (done, total) after each attacked block and each step; a reason that
            it returns ends the probe.

    Returns:
        `mi/natural_of_adversarial`, a lower bound in expectation on I_N(h(x_adv)) in nats, and so
        on; `..._shuffled`, their baselines; or the reason of the heartbeat.
    """
    attacked_images = len(train) + len(held_out)
    total, done = attacked_images + 8 * probe.steps, attacked_images

    def beat(steps: int) -> StopReason | None:
        nonlocal done
        done += steps
        return None if heartbeat is None else heartbeat(done, total)

    sets: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for images, earlier in ((train, 0), (held_out, len(train))):

        def attacking(num: int, of: int, earlier: int = earlier) -> StopReason | None:
            return None if heartbeat is None else heartbeat(earlier + num, total)

        attacked, block = _AttackedImages(), probe.batch * group.world_size
        outcome = evaluate_pgd(
            model, images, attack, group, block=block, heartbeat=attacking, metrics=[attacked]
        )
        if isinstance(outcome, StopReason):
            return outcome
        x_adv, logits, logits_adv = (torch.cat(parts) for parts in attacked.parts)
        x = to_unit(images.images)
        patterns = {"natural": x, "adversarial": x_adv - x}
        sets.append((patterns, {"natural": logits, "adversarial": logits_adv}))

    estimates: dict[str, float] = {}
    for kind in ("natural", "adversarial"):
        for of in ("natural", "adversarial"):
            seen, unseen = (Pairs(patterns[kind], outputs[of]) for patterns, outputs in sets)
            for suffix in ("", "_shuffled"):
                if suffix:
                    seen, unseen = seen.shuffled(), unseen.shuffled()
                nats = held_out_mi(seen, unseen, probe, group, beat)
                if isinstance(nats, StopReason):
                    return nats
                estimates[f"mi/{kind}_of_{of}{suffix}"] = nats
    return estimates


class _AttackedImages:
    """Adversarial images and both outputs of all workers, in the order of the images."""

    def __init__(self) -> None:
        self.parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])

    def update(self, block: AttackedBlock) -> None:
        """Adds a worker's shard of a block."""
        tensors = (block.x_adv, block.logits, block.logits_adv)
        for part, values in zip(self.parts, tensors, strict=True):
            part.append(block.shard.gather(values.contiguous()))

    def compute(self) -> dict[str, float]:
        """Returns no values."""
        return {}
