"""Adversarial weight perturbation (AWP): gradients at the worst nearby weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_TINY = 1e-20


class AdversarialWeightPerturbation:
    """Perturbation of weights that raises the adversarial loss.

    Each convolution and linear weight moves along its own gradient, by gamma times its norm; biases
    and BatchNorm's parameters stay.

    Source: Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS
        2020, Eq. 7-9: w + gamma |w| g / |g|.

    Args:
        model: the classifier.
        gamma: relative length of the perturbation.
        warmup: epochs without a perturbation.

    Attributes:
        epoch: complete epochs; set before each step.
    """

    def __init__(self, model: nn.Module, gamma: float, warmup: float = 0.0) -> None:
        self.gamma, self.warmup, self.epoch = gamma, warmup, 0
        self.weights = [p for p in model.parameters() if p.dim() > 1]

    @contextmanager
    def __call__(self, ascend: Callable[[], None]) -> Iterator[None]:
        """Perturbs the weights within a block, and restores them bit for bit.

        Args:
            ascend: leaves the gradient of the adversarial loss in the parameters.
        """
        if self.epoch < self.warmup:
            yield
            return
        ascend()
        before = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            for weight in self.weights:
                if weight.grad is not None:
                    weight.add_(self._move(weight, weight.grad))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, old in zip(self.weights, before, strict=True):
                    weight.copy_(old)

    def _move(self, weight: Tensor, grad: Tensor) -> Tensor:
        return self.gamma * weight.norm() / (grad.norm() + _TINY) * grad
