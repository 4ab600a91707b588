"""MALT: targeted APGD, its targets sorted by how close a linear model says that they are.

Source: Melamed, Yehudai, Vardi, "MALT Powers Up Adversarial Attacks", NeurIPS 2024, Algorithm 1.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.execution import Batch, predicted
from raymi.models.modes import full_precision


def malt(
    model: nn.Module, batch: Batch, threat: Threat, targets: int, candidates: int, steps: int
) -> Tensor:
    """Runs APGD on the targeted DLR loss once for each target, on samples that are not broken yet.

    Args:
        model: images in [0, 1] to logits (B, K), K > 3.
        batch: samples to attack.
        threat: norm and radius.
        targets: number of classes to attack.
        candidates: number of classes with the largest logits among which targets are chosen.
        steps: iterations of each run.

    Returns:
        x_adv (B, C, H, W).
    """
    from pyautoattack.autopgd_base import APGDAttack_targeted

    apgd = APGDAttack_targeted(
        model,
        n_iter=steps,
        norm={"linf": "Linf", "l2": "L2"}[threat.norm],
        eps=threat.eps,
        device=batch.x.device,
        logger=logging.getLogger(f"{__name__}.quiet"),
    )
    apgd.logger.setLevel(logging.ERROR)  # raymi.evaluation checks gradients once
    apgd.init_hyperparam(batch.x)
    order = sorted_targets(model, batch.x, batch.y, threat.norm, candidates)[:, :targets]
    x_adv, left = batch.x.clone(), predicted(model, batch.x) == batch.y
    for target in order.T:
        if not left.any():
            break
        apgd.y_target = target[left]
        _, right, _, found = apgd.attack_single_run(batch.x[left], batch.y[left])
        x_adv[left] = found
        left[left.clone()] = right
    return x_adv


def sorted_targets(model: nn.Module, x: Tensor, y: Tensor, norm: str, candidates: int) -> Tensor:
    """Sorts wrong classes by the distance to their boundary in the linear model at x.

    The distance to class t is (z_y - z_t) / |grad(z_y - z_t)|_q, with the dual norm q.

    Args:
        model: images to logits (B, K).
        x: (B, C, H, W) images.
        y: (B,) labels.
        norm: "linf" or "l2".
        candidates: number of classes with the largest logits.

    Returns:
        (B, min(candidates, K - 1)) int64 classes, the closest first.
    """
    x = x.detach().requires_grad_()
    logits = full_precision(model(x))
    rows = torch.arange(len(x), device=x.device)
    others = logits.detach().index_put((rows, y), logits.new_tensor(-torch.inf))
    classes = others.topk(min(candidates, logits.shape[1] - 1), dim=1).indices
    margins = logits[rows, y, None] - logits.gather(1, classes)
    distances = []
    for margin in margins.T:
        (gradient,) = torch.autograd.grad(margin.sum(), x, retain_graph=True)
        slope = gradient.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
        distances.append(margin.detach() / slope.clamp_min(1e-12))
    return classes.gather(1, torch.stack(distances, dim=1).argsort(dim=1))
