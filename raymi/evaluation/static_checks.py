"""Static checks: signs of false robustness that need no attack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.attacks.untouched import untouched
from raymi.evaluation.changes import Changes, changes_of
from raymi.evaluation.finding import FEW, Finding
from raymi.evaluation.fingerprint import CHUNK, Fingerprint, difference
from raymi.models.modes import FullPrecision

_FORWARDS = 10  # of a few images: some networks draw random numbers in few passes only
_ROUNDING = 1e-3  # of the logits' spread: more is not rounding of the same computation
_OTHER_BATCH = 0.03  # likewise, in a batch of another size, in bf16, too


@dataclass(frozen=True)
class StaticChecks:
    """Results of the static checks.

    Args:
        findings: of each check.
        fingerprint: logits and gradients that identify the network.
        differentiable: whether autograd follows its outputs.
        changes: of its input and its own state; with any, no accuracy is meaningful.
    """

    findings: tuple[Finding, ...]
    fingerprint: Fingerprint
    differentiable: bool
    changes: Changes


def run_static_checks(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> StaticChecks:
    """Checks properties of a classifier that let attacks fail.

    These are randomness, state, changed inputs, dependence on other images, probabilities in place
    of logits, and vanishing gradients.

    Args:
        model: images in [0, 1] to logits (B, K); unchanged afterwards.
        x: (B, C, H, W), at least one image.
        y: (B,) labels.
        seed: of each forward pass.
    """
    logits_of, few = FullPrecision(model), x[:CHUNK]
    with untouched(logits_of, seed), torch.no_grad():
        chunked = torch.cat([logits_of(chunk) for chunk in x.split(CHUNK)])
        once, *repeated = (logits_of(few) for _ in range(_FORWARDS))
        whole = logits_of(x)
    with untouched(logits_of, seed):
        changes = changes_of(model, few, seed)
    with untouched(logits_of, seed):
        chunks = zip(x.split(CHUNK), y.split(CHUNK), strict=True)
        gradients = [_gradients_of(logits_of, *chunk) for chunk in chunks]
    margins = torch.cat([margin for margin, _, _ in gradients])
    losses = torch.cat([loss for _, loss, _ in gradients])
    random = _randomised(once, repeated)
    findings = (
        random,
        _other_images(whole, chunked, deterministic=not random.suspicious),
        _finite(whole),
        probabilities(whole),
        _vanishing("margin", margins),
        _vanishing("cross-entropy", losses),
    )
    fingerprint = Fingerprint(chunked.cpu(), margins.cpu().nan_to_num(), random.suspicious)
    differentiable = all(followed for _, _, followed in gradients)
    return StaticChecks(findings, fingerprint, differentiable, changes)


def _gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Returns gradients of margin and cross-entropy, and whether autograd follows the outputs.

    Gradients are (B, C*H*W); zeros where it does not.
    """
    x = x.detach().requires_grad_()
    nothing = torch.zeros_like(x).flatten(1)
    with torch.enable_grad():
        logits = model(x)
        if not logits.requires_grad:
            return nothing, nothing, False
        own = logits.gather(1, y[:, None]).squeeze(1)
        margin = own - logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        loss = F.cross_entropy(logits, y, reduction="sum")
    gradients = []
    for value in (margin.sum(), loss):
        (grad,) = torch.autograd.grad(value, x, allow_unused=True, retain_graph=True)
        if grad is None:
            return nothing, nothing, False
        gradients.append(grad.flatten(1))
    return gradients[0], gradients[1], True


def _randomised(logits: Tensor, repeated: Iterable[Tensor]) -> Finding:
    largest = max(difference(logits, other) for other in repeated)
    return Finding(
        "randomised outputs",
        largest > _ROUNDING,
        f"{_FORWARDS} forwards of the same images differ by up to {largest:.1g} of the logits' "
        "spread",
    )


def _other_images(whole: Tensor, chunked: Tensor, *, deterministic: bool) -> Finding:
    largest = difference(whole, chunked)
    return Finding(
        "outputs that depend on other images",
        deterministic and largest > _OTHER_BATCH,
        f"logits of images in batches of {CHUNK} and in one batch differ by up to {largest:.1g} of "
        "their spread",
        conclusive=len(whole) > CHUNK,
    )


def _finite(logits: Tensor) -> Finding:
    num = int((~logits.isfinite()).any(dim=1).sum())
    return Finding(
        "outputs that are not finite",
        num > 0,
        f"logits of {num} of {len(logits)} images are infinite or not a number",
    )


def probabilities(logits: Tensor) -> Finding:
    """Tests whether outputs, (N, K), are probabilities instead of logits."""
    lowest, highest = logits.min().item(), logits.max().item()
    sums = logits.sum(dim=1)
    spread = (logits - logits.mean(dim=1, keepdim=True)).norm(dim=1).median()
    alike = bool((sums - sums.mean()).abs().max() <= 0.02 * spread)
    text = f"outputs lie in [{lowest:.3g}, {highest:.3g}]"
    if lowest >= -1e-5 and alike:
        text += f", and sum to {sums[0].item():.3g} for each image: attacks need logits"
    elif lowest >= -1e-5 and 0.9 < highest <= 1 + 1e-5:
        text += ", as probabilities do: attacks need logits"
    several = len(logits) > 1
    suspicious = several and "attacks need logits" in text
    return Finding("probabilities as outputs", suspicious, text, conclusive=several)


def _vanishing(of: str, gradients: Tensor) -> Finding:
    largest = gradients.abs().amax(dim=1)
    num, dead = len(largest), int((~largest.isfinite() | (largest < 1e-12)).sum())
    return Finding(
        f"gradients of the {of} that vanish",
        dead > max(2, 0.02 * num) or dead == num,
        f"the gradient of the {of} is zero or not finite for {dead} of {num} images",
        conclusive=num >= FEW or dead == num,
    )
