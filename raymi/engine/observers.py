"""What is measured beside accuracy on held-out images: mutual information, and signs of trouble."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from raymi.attacks.pgd import pgd
from raymi.collectives import Collectives
from raymi.config import MIConfig
from raymi.engine.estimator_task import score_outputs
from raymi.engine.metrics import MetricMeans
from raymi.engine.micro_batches import in_pieces, pieces_of
from raymi.engine.pgd_evaluation import AttackedBlock
from raymi.mi.estimators import MIEstimators
from raymi.mi.objectives import global_mean, selected
from raymi.models.modes import evaluation_mode


class MIObserver:
    """Natural and adversarial MI of natural and adversarial outputs, what the paper's Fig. 4 shows.

    `mi/natural_of_adversarial` is I_N(h(x_adv)), and so on: leave-one-out Donsker-Varadhan in nats,
    by critics in eval mode, over all samples and (`..._selected`) over those of Eq. 6. The
    negatives of a sample are its whole block; a last block that is not full is left out, unless it
    is the only one, since an estimate depends on its number of negatives.

    Args: estimators; mi, their settings; group; block, samples of a full block; micro_batch, images
        of a worker that go through an encoder at once, None: all.
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
        self._means, self._saw_some = MetricMeans(), False

    def see(self, block: AttackedBlock) -> None:
        """Adds a worker's share of a block."""
        x, x_adv, logits, logits_adv, y, sizes = block
        num = sum(sizes)
        if num < 2 or (num < self.block and self._saw_some):
            return
        self._saw_some = True
        natural_pattern = x if self.mi.natural_pattern == "clean" else x_adv
        patterns = (
            ("natural", self.estimators.natural, natural_pattern),
            ("adversarial", self.estimators.adversarial, x_adv - x),
        )
        chosen = selected(logits, logits_adv, y)
        num_chosen = int(self.group.sum(chosen.sum()))
        metrics: dict[str, Tensor] = {}
        metrics_chosen: dict[str, Tensor] = {}
        with evaluation_mode(self.estimators):
            for kind, critic, u in patterns:
                if critic is None:
                    continue
                features = in_pieces(critic.local_features, critic, u, sizes, self.micro_batch)
                for of, z in (("natural", logits), ("adversarial", logits_adv)):
                    scores = score_outputs(critic, z, features, sizes, self.mi, self.group)
                    nats = scores.donsker_varadhan()
                    name = f"mi/{kind}_of_{of}"
                    metrics[name] = global_mean(nats, None, num, self.group)
                    metrics_chosen[f"{name}_selected"] = global_mean(nats, chosen, num, self.group)
        self._means.add(metrics, num)
        if num_chosen > 0:
            self._means.add(metrics_chosen, num_chosen)

    def results(self) -> dict[str, float]:
        """Means over the samples seen, in nats; those of selected samples only where there were
        any."""
        return self._means.means(self.group)


class OneStepObserver:
    """Accuracy under the fast gradient sign method (one step of eps from the image).

    Source: Goodfellow et al. 2015. In L2 the step goes along the gradient.

    Args: model; eps, norm, as of the threat model; group; device; autocast, makes the context in
        which the model runs; micro_batch, images that are attacked at once, None: all.
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
        self._right, self._seen = torch.zeros((), dtype=torch.float64, device=device), 0

    def see(self, block: AttackedBlock) -> None:
        """Attacks a worker's share of a block."""
        x, y = block.x, block.y
        self._seen += sum(block.sizes)
        if len(x) == 0:
            return
        right = block.logits.argmax(dim=1) == y
        for images, labels, was_right in pieces_of(self.micro_batch, x, y, right):
            with self.autocast():
                x_fgsm = pgd(
                    self.model, images, labels,
                    eps=self.eps, alpha=self.eps, steps=1, norm=self.norm,
                )  # fmt: skip
                still = self.model(x_fgsm).argmax(dim=1) == labels
            self._right += (was_right & still).sum()

    def results(self) -> dict[str, float]:
        """`fgsm_acc`, a fraction."""
        return {"fgsm_acc": float(self.group.sum(self._right)) / max(self._seen, 1)}


def overfits_catastrophically(cheap: float, strong: float) -> bool:
    """Whether accuracies under a one-step and an iterative attack tell of catastrophic overfitting.

    A classifier that has learnt to mask its gradient withstands one step and not ten; a sound one
    loses a few points between them. The alarm rings where the strong attack leaves less than half
    of what the cheap one leaves, and 10 points less.

    Args: cheap, strong: accuracies, fractions.
    Source: Wong, Rice, Kolter 2020, Sec. 5.
    """
    return strong < 0.5 * cheap and cheap - strong > 0.1
