"""Signs that a robust accuracy is not real which can be seen without an attack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.attacks.untouched import untouched
from raymi.evaluation.changes import NO_CHANGES, Changes, changes_of
from raymi.evaluation.finding import FEW, Finding
from raymi.evaluation.fingerprint import PIECE, Fingerprint, difference
from raymi.formatting import listed
from raymi.models.modes import FullPrecision

_FORWARDS = 10  # of a few images: a network that draws seldom may answer the same twice
_ROUNDING = 1e-3  # of the logits' spread: more is no rounding of the same computation
_COMPANY = 0.03  # ... of one in a batch of another size, in bf16, too


@dataclass(frozen=True)
class StaticChecks:
    """Results of the checks that need no attack.

    Args:
        findings: of each check.
        outputs: logits and gradients that the network is recognised by.
        differentiable: whether autograd follows its outputs.
        changes: of its input and its own state; with any, no accuracy is meaningful.
    """

    findings: tuple[Finding, ...]
    outputs: Fingerprint
    differentiable: bool
    changes: Changes = NO_CHANGES


def run_static_checks(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> StaticChecks:
    """Looks for randomness, state, changed inputs, dependence on other images, probabilities in
    place of logits, and gradients that vanish.

    Args: model, images in [0, 1] to logits (B, K), left as it was; x (B, C, H, W), at least one;
        y (B,); seed.
    """
    answers, few = FullPrecision(model), x[:PIECE]
    with untouched(answers, seed), torch.no_grad():
        parts = torch.cat([answers(part) for part in x.split(PIECE)])
        once, *again = (answers(few) for _ in range(_FORWARDS))
        whole = answers(x)
    with untouched(answers, seed):
        changes = changes_of(model, few, seed)
    with untouched(answers, seed):
        pieces = zip(x.split(PIECE), y.split(PIECE), strict=True)
        slopes = [_slopes(answers, *piece) for piece in pieces]
    margins = torch.cat([margin for margin, _, _ in slopes])
    losses = torch.cat([loss for _, loss, _ in slopes])
    random = _randomised(once, again)
    findings = (
        random,
        _input_changed(changes),
        _stateful(changes),
        _company(whole, parts, known=not random.suspicious),
        _finite(whole),
        probabilities(whole),
        _gradients("margin", margins),
        _gradients("cross-entropy", losses),
    )
    outputs = Fingerprint(parts.cpu(), margins.cpu().nan_to_num(), random.suspicious)
    followed = all(followed for _, _, followed in slopes)
    return StaticChecks(findings, outputs, followed, changes)


def _slopes(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Gradients by each image of its margin, and of its cross-entropy, (B, C*H*W) each; zeros and
    False where the outputs do not depend on the images as autograd sees it."""
    x = x.detach().requires_grad_()
    nothing = torch.zeros_like(x).flatten(1)
    with torch.enable_grad():
        logits = model(x)
        if not logits.requires_grad:
            return nothing, nothing, False
        own = logits.gather(1, y[:, None]).squeeze(1)
        margin = own - logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        loss = F.cross_entropy(logits, y, reduction="sum")
    found = []
    for value in (margin.sum(), loss):
        (grad,) = torch.autograd.grad(value, x, allow_unused=True, retain_graph=True)
        if grad is None:
            return nothing, nothing, False
        found.append(grad.flatten(1))
    return found[0], found[1], True


def _randomised(logits: Tensor, again: Iterable[Tensor]) -> Finding:
    largest = max(difference(logits, other) for other in again)
    return Finding(
        "randomised outputs",
        largest > _ROUNDING,
        f"{_FORWARDS} forwards of the same images differ by up to {largest:.1g} of the logits' "
        "spread",
    )


def _input_changed(changes: Changes) -> Finding:
    said = "is changed" if changes.input else "stays as it is"
    return Finding("input that changes", changes.input, f"the tensor of images {said}")


def _stateful(changes: Changes) -> Finding:
    text = f"{len(changes.state)} parameters, buffers and attributes change in eval mode"
    if changes.state:
        text += f": {listed(changes.state)}"
    if changes.answers:
        text += "; the same images with the same random state get other logits later"
    return Finding("state that changes", bool(changes.state) or changes.answers, text)


def _company(whole: Tensor, parts: Tensor, *, known: bool) -> Finding:
    largest = difference(whole, parts)
    return Finding(
        "outputs that depend on other images",
        known and largest > _COMPANY,
        f"logits of images in parts of {PIECE} and all at once differ by up to {largest:.1g} of "
        "their spread",
        conclusive=len(whole) > PIECE,
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


def _gradients(of: str, gradients: Tensor) -> Finding:
    largest = gradients.abs().amax(dim=1)
    num, dead = len(largest), int((~largest.isfinite() | (largest < 1e-12)).sum())
    return Finding(
        f"gradients of the {of} that vanish",
        dead > max(2, 0.02 * num) or dead == num,
        f"the gradient of the {of} is zero or not finite for {dead} of {num} images",
        conclusive=num >= FEW or dead == num,
    )
