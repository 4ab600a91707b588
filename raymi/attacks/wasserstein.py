"""Wasserstein attack (FWA): moves the mass of pixels by short distances, and adds none.

A transport plan pi sets how much of each pixel's mass goes to which nearby pixel; the adversarial
image is the mass that pixels receive. Each step raises the classifier's loss, then projects onto
the plans that send exactly the image's mass within the cost budget.

Source: Wu, Wang, Yu, "Stronger and faster Wasserstein adversarial attacks", ICML 2020: projected
    gradient on local plans, with the dual projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.models.modes import evaluation_mode, full_precision


class LocalPlans:
    """Transport plans over images of one size, within a square around each pixel.

    A plan is (B, C, k*k, H*W): the mass sent from a pixel (last dimension, by rows) by an offset.
    An even kernel reaches one pixel further up and left than down and right.

    Args:
        height: height of the images, in pixels.
        width: width of the images, in pixels.
        kernel: side k of the square, in pixels.
        like: tensor of the dtype and device to compute with.
    """

    def __init__(self, height: int, width: int, kernel: int, like: Tensor) -> None:
        self.height, self.width, self.kernel = height, width, kernel
        before = kernel // 2
        self._padding = (before, kernel - 1 - before) * 2
        offsets = torch.arange(kernel, dtype=like.dtype, device=like.device) - before
        self.cost = torch.hypot(offsets[:, None], offsets[None, :]).view(-1, 1)
        """Distance of each offset in pixels, (k*k, 1): the cost of a unit of mass."""
        inside = like.new_ones(1, 1, height, width)
        self.allowed = F.unfold(F.pad(inside, self._padding), kernel)[0] > 0
        """Offsets that stay inside the image, (k*k, H*W) bool."""
        self._stay = before * kernel + before

    def identity(self, x: Tensor) -> Tensor:
        """Returns the plan that moves nothing: (B, C, k*k, H*W) for x (B, C, H, W)."""
        plan = x.new_zeros(*x.shape[:2], self.kernel**2, self.height * self.width)
        plan[:, :, self._stay] = x.flatten(2)
        return plan

    def arrival(self, plan: Tensor) -> Tensor:
        """Returns the received mass as an image (B, C, H, W); pixels may exceed 1."""
        top, bottom, left, right = self._padding
        size = (self.height + top + bottom, self.width + left + right)
        padded = F.fold(plan.flatten(1, 2), size, self.kernel)
        return padded[:, :, top : top + self.height, left : left + self.width]

    def total_cost(self, plan: Tensor) -> Tensor:
        """Returns mass times distance, summed over all channels of each image: (B,)."""
        return (plan * self.cost).sum(dim=(1, 2, 3))

    def project(self, plan: Tensor, x: Tensor, budget: Tensor, iterations: int = 15) -> Tensor:
        """Projects onto the plans that send the mass of x and cost at most the budget.

        Bisection finds the multiplier of the budget for each image, from the side that satisfies
        the budget; for a given multiplier, rows of the plan are projected onto simplices.

        Args:
            plan: (B, C, k*k, H*W), any numbers.
            x: (B, C, H, W) images, >= 0.
            budget: (B,) largest costs, >= 0.
            iterations: steps of the bisection, which ends within 2**-iterations of the largest
                possible multiplier.

        Returns:
            (B, C, k*k, H*W): entries >= 0, sums over offsets equal x, no mass leaves the image.
        """
        mass = x.flatten(2)
        free = self._rows(plan, mass)
        over = self.total_cost(free) > budget
        if not over.any():
            return free
        low = torch.zeros_like(budget)
        largest = plan.masked_fill(~self.allowed, -torch.inf).amax(dim=(1, 2, 3))
        high = largest - plan[:, :, self._stay].amin(dim=(1, 2)) + mass.amax(dim=(1, 2))
        high = high.clamp(min=0.0)  # nothing moves at this multiplier
        for _ in range(iterations):
            middle = (low + high) / 2
            costly = self.total_cost(self._rows(plan - self._priced(middle), mass)) > budget
            low, high = torch.where(costly, middle, low), torch.where(costly, high, middle)
        priced = self._rows(plan - self._priced(high), mass)
        return torch.where(over.view(-1, 1, 1, 1), priced, free)

    def _priced(self, multiplier: Tensor) -> Tensor:
        return multiplier.view(-1, 1, 1, 1) * self.cost

    def _rows(self, plan: Tensor, mass: Tensor) -> Tensor:
        """Projects each pixel's row (B, C, k*k, H*W) onto the simplex of its mass (B, C, H*W).

        Source: Held, Wolfe, Crowder 1974; Duchi et al. 2008, Fig. 1.
        """
        mass = mass.unsqueeze(2)
        # entries further below the largest one than the mass become 0
        nothing = plan.masked_fill(~self.allowed, -torch.inf).amax(dim=2, keepdim=True) - mass - 1
        plan = torch.where(self.allowed, plan, nothing)
        descending = plan.sort(dim=2, descending=True).values
        excess = descending.cumsum(dim=2) - mass
        count = torch.arange(1, plan.shape[2] + 1, dtype=plan.dtype, device=plan.device).view(-1, 1)
        num = (count * descending > excess).sum(dim=2, keepdim=True).clamp(min=1)
        threshold = excess.gather(2, num - 1) / num
        return (plan - threshold).clamp(min=0.0)


def wasserstein_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 8 / 255,
    step_size: float = 0.007,
    steps: int = 40,
    kernel: int = 4,
    iterations: int = 15,
) -> Tensor:
    """Maximises the loss of each sample by moving its mass, in eval mode.

    The bisection has a fixed number of steps, where the reference code stops for a whole batch: a
    sample's outcome does not depend on the other samples.

    Args:
        model: images in [0, 1] to logits (B, K).
        x: (B, C, H, W) in [0, 1].
        y: (B,).
        eps: mean distance that a unit of mass may move, in pixels; the budget of an image is eps
            times the sum of its pixels.
        step_size: step along the gradient of the plan, scaled to a largest entry of 1.
        steps: steps of the ascent.
        iterations: steps of the bisection in each projection.
        kernel: side in pixels of the square in which mass may move.

    Returns:
        (B, C, H, W) in [0, 1], detached: received mass, clamped at 1. A clamped image has less
        mass than x.

    Source: Wu et al. 2020; settings of the evaluation of Zhou et al. 2022.
    """
    x = x.detach()
    if len(x) == 0:
        return x
    plans = LocalPlans(x.shape[-2], x.shape[-1], kernel, like=x)
    plan, budget = plans.identity(x), eps * x.sum(dim=(1, 2, 3))
    with evaluation_mode(model), torch.enable_grad():
        for _ in range(steps):
            plan = plan.detach().requires_grad_()
            logits = full_precision(model(plans.arrival(plan).clamp(0.0, 1.0)))
            loss = F.cross_entropy(logits, y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, plan)
            with torch.no_grad():
                grad = grad.nan_to_num(0.0, 0.0, 0.0)  # NaN of one pixel must not stop the others
                largest = grad.abs().amax(dim=(1, 2, 3), keepdim=True)
                grad = grad / largest.clamp(min=torch.finfo(grad.dtype).tiny)
                plan = plans.project(plan + step_size * grad, x, budget, iterations)
    return plans.arrival(plan).clamp(0.0, 1.0).detach()
