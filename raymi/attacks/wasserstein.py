"""The Wasserstein attack (FWA): moves the mass of pixels a little way, and adds nothing.

A transport plan pi says how much of each pixel's mass goes to which pixel near it; the image that
arrives is what pixels receive. The plan climbs the classifier's loss, and is brought back after
each step to the nearest plan that sends away just what there is and does not cost too much.

Source: Wu, Wang, Yu, "Stronger and faster Wasserstein adversarial attacks", ICML 2020: projected
gradient on local plans, with the dual projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.models.modes import evaluation_mode, full_precision


class LocalPlans:
    """Plans over images of one size: each pixel's mass may go to the pixels of a square around it.

    A plan is (B, C, k*k, H*W): what goes from a pixel (last dimension, by rows) by an offset. An
    even kernel reaches one pixel further up and left than down and right.

    Args: height, width of the images in pixels; kernel, side k of the square; like, a tensor of the
        dtype and device to compute with.
    """

    def __init__(self, height: int, width: int, kernel: int, like: Tensor) -> None:
        self.height, self.width, self.kernel = height, width, kernel
        before = kernel // 2
        self._padding = (before, kernel - 1 - before) * 2
        offsets = torch.arange(kernel, dtype=like.dtype, device=like.device) - before
        self.cost = torch.hypot(offsets[:, None], offsets[None, :]).view(-1, 1)
        """Of a unit of mass by each offset: its way in pixels, (k*k, 1)."""
        inside = like.new_ones(1, 1, height, width)
        self.allowed = F.unfold(F.pad(inside, self._padding), kernel)[0] > 0
        """Offsets that do not leave the image: (k*k, H*W)."""
        self._stay = before * kernel + before

    def identity(self, x: Tensor) -> Tensor:
        """The plan by which everything stays: (B, C, k*k, H*W) for x (B, C, H, W)."""
        plan = x.new_zeros(*x.shape[:2], self.kernel**2, self.height * self.width)
        plan[:, :, self._stay] = x.flatten(2)
        return plan

    def arrival(self, plan: Tensor) -> Tensor:
        """The image that arrives: (B, C, H, W), of the mass that was sent; pixels may exceed 1."""
        top, bottom, left, right = self._padding
        size = (self.height + top + bottom, self.width + left + right)
        padded = F.fold(plan.flatten(1, 2), size, self.kernel)
        return padded[:, :, top : top + self.height, left : left + self.width]

    def total_cost(self, plan: Tensor) -> Tensor:
        """Mass times way, over all channels of each image: (B,)."""
        return (plan * self.cost).sum(dim=(1, 2, 3))

    def project(self, plan: Tensor, x: Tensor, budget: Tensor, iterations: int = 15) -> Tensor:
        """The nearest plan that sends what x has, and costs at most the budget.

        The multiplier of the budget is found by bisection for each image, from the side on which
        the budget is kept; for a given one, the rows of the plan are projections onto simplices.

        Args: plan (B, C, k*k, H*W), any numbers; x (B, C, H, W) >= 0; budget (B,) >= 0;
            iterations of the bisection: it ends within 2**-iterations of the largest multiplier
            that there can be.
        Returns: (B, C, k*k, H*W): entries >= 0, sums over offsets x, none that leaves the image.
        """
        mass = x.flatten(2)
        free = self._rows(plan, mass)
        over = self.total_cost(free) > budget
        if not over.any():
            return free
        low = torch.zeros_like(budget)
        largest = plan.masked_fill(~self.allowed, -torch.inf).amax(dim=(1, 2, 3))
        high = largest - plan[:, :, self._stay].amin(dim=(1, 2)) + mass.amax(dim=(1, 2))
        high = high.clamp(min=0.0)  # there, nothing moves
        for _ in range(iterations):
            middle = (low + high) / 2
            costly = self.total_cost(self._rows(plan - self._priced(middle), mass)) > budget
            low, high = torch.where(costly, middle, low), torch.where(costly, high, middle)
        priced = self._rows(plan - self._priced(high), mass)
        return torch.where(over.view(-1, 1, 1, 1), priced, free)

    def _priced(self, multiplier: Tensor) -> Tensor:
        return multiplier.view(-1, 1, 1, 1) * self.cost

    def _rows(self, plan: Tensor, mass: Tensor) -> Tensor:
        """Each pixel's row onto the simplex of its mass; (B, C, k*k, H*W) and (B, C, H*W).

        Source: Held, Wolfe, Crowder 1974; Duchi et al. 2008, Fig. 1.
        """
        mass = mass.unsqueeze(2)
        # What is further than the mass below the largest entry gets nothing.
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
    """Raises the loss of each sample by moving its mass, in eval mode.

    The bisection makes a fixed number of steps, where the reference stops for a whole batch at
    once: a sample's outcome does not depend on its company.

    Args:
        model: images in [0, 1] to logits (B, K).
        x: (B, C, H, W) in [0, 1]. y: (B,).
        eps: pixels by which a unit of mass may be moved on average; the budget of an image is eps
            times the sum of its pixels.
        step_size: of a step along the gradient of the plan, whose largest entry is made 1.
        steps, iterations: of the ascent, and of the bisection in each of its projections.
        kernel: side in pixels of the square in which mass may move.
    Returns: (B, C, H, W) in [0, 1], detached: what arrives, without what exceeds 1. Where mass
        exceeds 1 and is cut off, the image has less mass than x.
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
                grad = grad.nan_to_num(0.0, 0.0, 0.0)  # one pixel's must not stop the others
                largest = grad.abs().amax(dim=(1, 2, 3), keepdim=True)
                grad = grad / largest.clamp(min=torch.finfo(grad.dtype).tiny)
                plan = plans.project(plan + step_size * grad, x, budget, iterations)
    return plans.arrival(plan).clamp(0.0, 1.0).detach()
