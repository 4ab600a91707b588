"""Projected gradient descent, the training attack.

It computes gradients of the input only, and leaves the classifier, its parameter gradients and
torch's global random state unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.attacks.projections import project, steepest_step
from raymi.models.modes import evaluation_mode, full_precision


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    norm: str = "linf",
    projection: str = "ball-first",
    objective: str = "ce",
    start: Tensor | None = None,
) -> Tensor:
    """Maximises the loss of each sample within a ball around it, in eval mode.

    The loss is summed over the batch, so that a sample's perturbation does not depend on the other
    samples. From the same start it equals torchattacks.PGD and PGDL2, whose loss is the mean, up to
    rounding of the gradient divided by B (and, in L2, the 1e-10 added to its norm).

    Args:
        model: images in [0, 1] to logits (B, K).
        x: (B, C, H, W) in [0, 1].
        y: (B,) labels, or (B, K) probabilities.
        eps: radius, in pixel units.
        alpha: step size, in pixel units.
        steps: number of steps.
        norm: "linf" or "l2".
        projection: in L2, "ball-first" as in torchattacks or "box-first" as in TRADES (see
            `projections.project`), which steps by 2 * eps / steps.
        objective: "ce" maximises cross-entropy against y; "kl" maximises KL(p(x) || p(x_adv)), as
            in TRADES, which has no gradient at x and needs a start.
        start: (B, C, H, W) first iterate (see `projections.start_of`); None: x.

    Returns:
        x_adv (B, C, H, W) in [0, 1], detached, within eps of x.

    Source: Madry et al. 2018, Sec. 2.1; Zhang et al. 2019, Alg. 1 for "kl".
    """
    x = x.detach()
    x_adv = x if start is None else start.detach()
    if len(x) == 0:
        return x_adv
    with evaluation_mode(model), torch.enable_grad():
        log_p = None
        if objective == "kl":
            with torch.no_grad():
                log_p = F.log_softmax(full_precision(model(x)), dim=1)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            loss = _loss(model(x_adv), y, log_p)
            (grad,) = torch.autograd.grad(loss, x_adv)
            step = alpha * steepest_step(grad, norm, projection)
            x_adv = project(x, x_adv.detach() + step, eps, norm, projection)
    return x_adv.detach()


def _loss(logits: Tensor, y: Tensor, log_p: Tensor | None) -> Tensor:
    logits = full_precision(logits)
    if log_p is None:
        return F.cross_entropy(logits, y, reduction="sum")
    return F.kl_div(F.log_softmax(logits, dim=1), log_p, reduction="sum", log_target=True)
