"""Metrics of attacked held-out images beside accuracy: mutual information and FGSM accuracy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from raymi.attacks.pgd import pgd
from raymi.collectives import Collectives
from raymi.engine.metrics import MetricMeans
from raymi.engine.pgd_evaluation import AttackedBlock
from raymi.mi.estimation import score_outputs
from raymi.mi.estimators import MIEstimators
from raymi.mi.forms.base import MITerm
from raymi.mi.objectives import selected
from raymi.mi.settings import MIConfig
from raymi.models.micro_batches import in_pieces, pieces_of
from raymi.models.modes import evaluation_mode


class MIEstimates:
    """Natural and adversarial MI of natural and adversarial outputs (the paper's Fig. 4).

    `mi/natural_of_adversarial` is I_N(h(x_adv)), and so on: leave-one-out Donsker-Varadhan in nats,
    by estimators in eval mode, over all samples and (`..._selected`) over the samples of Eq. 6. The
    negatives of a sample are its whole block; an incomplete last block is skipped unless it is the
    only one, since an estimate depends on its number of negatives.

    Args:
        estimators: of both kinds of MI; an ablated one is None.
        mi: their settings.
        group: the workers.
        block: samples of a full block.
        micro_batch: images of a worker per pass of an encoder; None: all.
    """

    def __init__(
        self,
        estimators: MIEstimators,
        mi: MIConfig,
        group: Collectives,
        block: int,
        micro_batch: int | None = None,
    ) -> None:
        self.estimators, self.mi, self.group, self.block = estimators, mi, group, block
        self.micro_batch = micro_batch
        self._means, self._has_block = MetricMeans(), False

    def update(self, block: AttackedBlock) -> None:
        """Adds a worker's shard of a block."""
        x, x_adv, logits, logits_adv, y, shard = block
        num = shard.num
        if num < 2 or (num < self.block and self._has_block):
            return
        self._has_block = True
        natural_pattern = x if self.mi.natural_pattern == "clean" else x_adv
        patterns = (
            ("natural", self.estimators.natural, natural_pattern),
            ("adversarial", self.estimators.adversarial, x_adv - x),
        )
        mask = selected(logits, logits_adv, y)
        num_selected = int(self.group.sum(mask.sum()))
        metrics: dict[str, Tensor] = {}
        selected_metrics: dict[str, Tensor] = {}
        with evaluation_mode(self.estimators):
            for kind, estimator, u in patterns:
                if estimator is None:
                    continue
                features = in_pieces(
                    estimator.local_features, estimator, u, shard, self.micro_batch
                )
                pairs = [(estimator, z, features) for z in (logits, logits_adv)]
                scores = score_outputs(pairs, shard, self.mi)
                for of, each in zip(("natural", "adversarial"), scores, strict=True):
                    nats = each.donsker_varadhan()
                    name = f"mi/{kind}_of_{of}"
                    metrics[name] = shard.mean(nats)
                    selected_metrics[f"{name}_selected"] = shard.mean(nats, mask)
        self._means.add(metrics, num)
        if num_selected > 0:
            self._means.add(selected_metrics, num_selected)

    def compute(self) -> dict[str, float]:
        """Returns the means over all samples, in nats, and over selected samples if any."""
        return self._means.means(self.group)


class TermMetrics:
    """MI of a term without estimators, of natural and adversarial outputs.

    Args:
        term: its metrics are bounds on an MI, in nats.
        group: the workers.
    """

    def __init__(self, term: MITerm, group: Collectives) -> None:
        self.term, self.group = term, group
        self._means = MetricMeans()

    @torch.no_grad()
    def update(self, block: AttackedBlock) -> None:
        """Adds a worker's shard of a block."""
        self.term.target(block.x, block.y, block.shard)
        _, metrics = self.term(*block)
        self._means.add(metrics, block.shard.num)

    def compute(self) -> dict[str, float]:
        """Returns the means over all samples."""
        return self._means.means(self.group)


class FGSMAccuracy:
    """Accuracy under the fast gradient sign method: one step of eps from the image.

    Source: Goodfellow et al. 2015. In L2 the step follows the gradient.

    Args:
        model: the classifier, in eval mode.
        eps: radius in [0, 1] pixel units.
        norm: of the threat model.
        group: the workers.
        device: of the model.
        autocast: returns the context in which the model runs.
        micro_batch: images of a worker that are attacked together; None: all.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float,
        norm: str,
        group: Collectives,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        micro_batch: int | None = None,
    ) -> None:
        self.micro_batch = micro_batch
        self.model, self.eps, self.norm, self.group = model, eps, norm, group
        self.autocast = autocast
        self._correct, self._num = torch.zeros((), dtype=torch.float64, device=device), 0

    def update(self, block: AttackedBlock) -> None:
        """Attacks a worker's shard of a block."""
        x, y = block.x, block.y
        self._num += block.shard.num
        if len(x) == 0:
            return
        correct = block.logits.argmax(dim=1) == y
        for images, labels, was_correct in pieces_of(self.micro_batch, x, y, correct):
            with self.autocast():
                x_fgsm = pgd(
                    self.model, images, labels,
                    eps=self.eps, alpha=self.eps, steps=1, norm=self.norm,
                )  # fmt: skip
                still_correct = self.model(x_fgsm).argmax(dim=1) == labels
            self._correct += (was_correct & still_correct).sum()

    def compute(self) -> dict[str, float]:
        """Returns `fgsm_acc`, a fraction."""
        return {"fgsm_acc": float(self.group.sum(self._correct)) / max(self._num, 1)}
