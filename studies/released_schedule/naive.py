"""Naive schedule: a training step with the operations of the method's released code.

Slow reference, which computes the same as `mi.form=released` with frozen estimators (a test
compares them). Each use of an output has its own forward: seven train-mode forwards of the
classifier in a step, five of them with backward. Local encoders run with gradient for each of their
four uses and are differentiated although they are frozen. PGD attacks the network without folding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from raymi.attacks.settings import AttackConfig
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.models.modes import full_precision


class NaiveSchedule:
    """A step of NAMID on AT, in the stage with frozen estimators.

    Args:
        model: classifier in train mode.
        estimators: both estimators, which stay unchanged.
        optimizer: optimizer of the classifier.
        attack: radius (L_inf), step size and number of steps of the attack.
        autocast: returns the context in which the classifier runs.
        weight: weight of the MI loss (the paper's alpha).
    """

    def __init__(
        self,
        model: nn.Module,
        estimators: MIEstimators,
        optimizer: Optimizer,
        attack: AttackConfig,
        autocast: Callable[[], AbstractContextManager[object]],
        weight: float = 5.0,
    ) -> None:
        assert estimators.natural is not None
        assert estimators.adversarial is not None
        self.model, self.estimators, self.optimizer = model, estimators.eval(), optimizer
        self.natural, self.adversarial = estimators.natural, estimators.adversarial
        self.attack, self.autocast, self.weight = attack, autocast, weight

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Updates the classifier once on its own adversarial samples.

        Args:
            x: (B, 3, H, W) in [0, 1].
            y: (B,).

        Returns:
            Loss, 0-d.
        """
        return self.step_on(x, self.craft(x, y), y)

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Attacks x by PGD in eval mode, from x plus normal noise of 0.001.

        Returns:
            (B, 3, H, W) in [0, 1], within eps of x.
        """
        eps, alpha = self.attack.eps, self.attack.step_size
        generator = torch.Generator(x.device).manual_seed(0)
        x_adv = x + 0.001 * torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype)
        self.model.eval()
        for _ in range(self.attack.steps):
            x_adv = x_adv.detach().requires_grad_()
            loss = F.cross_entropy(self.outputs(x_adv), y)
            (grad,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + alpha * grad.sign()
            x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        self.model.train()
        return x_adv.detach()

    def step_on(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Updates the classifier once on given adversarial samples; returns the loss, 0-d."""
        loss = self.loss(x, x_adv, y)
        self.optimizer.zero_grad()
        self.estimators.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """Computes CE(h(x_adv), y) + weight * (L_cos(natural MI) + L_cos(adversarial MI)), 0-d."""
        noise = x_adv - x
        loss_adv = F.cross_entropy(self.outputs(x_adv), y)
        chosen = selected(self.outputs(x), self.outputs(x_adv), y)
        natural_of_natural = neg_mi(self.natural, x, self.outputs(x))
        natural_of_adversarial = neg_mi(self.natural, x, self.outputs(x_adv))
        adversarial_of_adversarial = neg_mi(self.adversarial, noise, self.outputs(x_adv))
        adversarial_of_natural = neg_mi(self.adversarial, noise, self.outputs(x))
        apart = cosine_distance(natural_of_natural, natural_of_adversarial, chosen)
        apart_too = cosine_distance(adversarial_of_adversarial, adversarial_of_natural, chosen)
        return loss_adv + self.weight * (apart + apart_too)

    def outputs(self, x: Tensor) -> Tensor:
        """Computes the logits h(x): (B, 3, H, W) in [0, 1] to (B, K)."""
        with self.autocast():
            return full_precision(self.model(x))


def selected(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    """Selects samples that are right as clean and wrong as adversarial ones.

    As in the released code, the softmax runs over the batch.

    Args:
        logits: (B, K).
        logits_adv: (B, K).
        y: (B,).

    Returns:
        (B,) bool.
    """
    right = F.softmax(logits, dim=0).argmax(dim=1) == y
    wrong = F.softmax(logits_adv, dim=0).argmax(dim=1) != y
    return right & wrong


def neg_mi(critic: LocalDIM, u: Tensor, logits: Tensor) -> Tensor:
    """Computes minus the released Donsker-Varadhan estimate of each sample.

    Args:
        critic: estimator of one kind of MI.
        u: (B, 3, H, W), the natural or adversarial pattern.
        logits: (B, K).

    Returns:
        (B,) in nats.
    """
    patterns = critic.local_features(u)  # (B, H, P)
    outputs = critic.global_features(logits)  # (B, H)
    scores = torch.einsum("ih,jhp->ijp", outputs, patterns)
    positive = scores.diagonal(dim1=0, dim2=1).T  # (B, P)
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)[:, :, None]
    negative = torch.logsumexp(scores.masked_fill(own, 0), dim=1) - math.log(len(scores) - 1)
    return (negative - positive).mean(dim=1)


def cosine_distance(a: Tensor, b: Tensor, chosen: Tensor) -> Tensor:
    """Computes |1 - cos(a, b)| over the chosen samples: (B,), (B,), (B,) bool to 0-d."""
    return (1 - F.cosine_similarity(a * chosen, b * chosen, dim=0)).abs()
