"""Checks detect false robustness and pass an adversarially trained network."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from raymi.attacks.catalogue import Threat
from raymi.attacks.pgd import pgd
from raymi.data import load_splits
from raymi.data.augment import to_unit
from raymi.evaluation.attack_checks import (
    at_chance,
    attack_findings,
    black_box,
    check_ensembles,
    one_step,
    radius_curve,
)
from raymi.evaluation.blocks import BlockAttacker, Schedule
from raymi.evaluation.finding import in_short
from raymi.evaluation.fingerprint import difference
from raymi.evaluation.static_checks import probabilities, run_static_checks
from raymi.models import build_model

THREAT = Threat("linf", 0.08)
BOTH_GRADIENTS = (
    "gradients of the margin that vanish",
    "gradients of the cross-entropy that vanish",
)


@pytest.fixture(scope="module")
def images():
    return load_splits("digits", image_size=16, limit=600).train


@pytest.fixture(scope="module")
def honest(images):
    """Adversarially trained."""
    x, y = to_unit(images.images), images.labels
    torch.manual_seed(1)
    model = build_model(
        "small-cnn", num_classes=10, image_size=16, mean=[0.3] * 3, std=[0.35] * 3,
        width=0.25, depth=4,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(150):
        batch = (torch.arange(50) + 50 * step) % len(x)
        x_adv = pgd(model, x[batch], y[batch], eps=0.08, alpha=0.03, steps=5)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_adv), y[batch]).backward()
        optimizer.step()
    return model.eval()


class Wrapped(nn.Module):
    """A network with something before or after it."""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model = model
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.model(self.before(x)))


class Quantised(nn.Module):
    """Rounds pixels to 1/16: nearly the same image, no gradient."""

    def forward(self, x):
        return (x * 16).round() / 16


class Steep(nn.Module):
    """Rounds pixels by steep sigmoids: gradients are zero in most places and huge in some."""

    def forward(self, x):
        edges = (torch.arange(16, device=x.device) + 0.5) / 16
        return torch.sigmoid(3000 * (x.unsqueeze(-1) - edges)).mean(-1)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Half(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def findings(model, images, num=60):
    """Returns findings of all checks, on all blocks of 20 but one."""
    x, y = to_unit(images.images[:num]), images.labels[:num]
    checks = run_static_checks(model, x, y)
    ensembles = check_ensembles(num, 10, differentiable=checks.differentiable)
    attacker = BlockAttacker(model, images, ensembles, THREAT, seed=0)
    plan = Schedule(num + 20, 20, ensembles)
    waiting, outcomes = list(plan.first()), []
    while waiting:
        step, samples = waiting.pop()
        outcome, _ = attacker.run(step, samples)
        outcomes.append((step, outcome))
        waiting += plan.after(step, outcome)
    blocks = plan.blocks_of(ensembles[0])
    attacked = [(step, outcome) for step, outcome in outcomes if step.block in blocks]
    return [*checks.findings, *attack_findings(attacked, 10)]


def suspicions(model, images):
    return {f.check for f in findings(model, images) if f.suspicious}


@pytest.mark.slow
def test_a_robust_network_passes_all_checks(honest, images):
    found = findings(honest, images)
    assert [f.text for f in found if f.suspicious] == []
    assert len({f.check for f in found}) == len(found) == 10
    curve = found[-1].text
    assert curve.startswith("PGD-20: ")
    assert curve.count("% at ") == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(
            Quantised(),
            {*BOTH_GRADIENTS, "black box stronger than gradients"},
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(Steep(), {"black box stronger than gradients"}, marks=pytest.mark.exhaustive),
        pytest.param(Noisy(), {"randomised outputs"}, marks=pytest.mark.exhaustive),
    ],
    ids=["quantised", "steep", "noisy"],
)
def test_masked_gradients_are_detected(before, expected, honest, images):
    assert suspicions(Wrapped(honest, before=before), images) >= expected


class Detached(nn.Module):
    """Preprocessing outside of autograd, as of JPEG."""

    def forward(self, x):
        return x.detach()


@pytest.mark.slow
def test_outputs_outside_of_autograd_are_detected(honest, images):
    found = suspicions(Wrapped(honest, before=Detached()), images)
    assert found == {*BOTH_GRADIENTS, "black box stronger than gradients"}


class Company(nn.Module):
    """Normalises by the batch, in eval mode, too."""

    def forward(self, x):
        return x - x.mean(dim=0)


class Seldom(nn.Module):
    """Noise in one of five forwards."""

    def forward(self, x):
        return x + torch.randn_like(x) * (torch.rand(()) < 0.2)


@pytest.mark.parametrize(
    ("after", "sign"),
    [
        (Company(), "outputs that depend on other images"),
        (Seldom(), "randomised outputs"),
        (nn.Sigmoid(), "probabilities as outputs"),
        (nn.Softmax(dim=1), "probabilities as outputs"),
        (Scaled(1e4), "gradients of the cross-entropy that vanish"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_static_checks_detect_signs_of_false_robustness(after, sign, honest, images):
    x, y = to_unit(images.images[:60]), images.labels[:60]
    checks = run_static_checks(Wrapped(honest, after=after), x, y)
    assert sign in {finding.check for finding in checks.findings if finding.suspicious}


def test_a_robust_network_in_half_precision_passes(honest, images):
    half = Wrapped(copy.deepcopy(honest).bfloat16(), before=Half())
    x, y = to_unit(images.images[:60]), images.labels[:60]
    checks = run_static_checks(half, x, y)
    assert not any(finding.suspicious for finding in checks.findings)
    softmax = run_static_checks(Wrapped(half, after=nn.Softmax(dim=1)), x, y)
    assert "probabilities as outputs" in {f.check for f in softmax.findings if f.suspicious}


def test_checks_without_images_are_inconclusive():
    nothing = torch.zeros(0, dtype=torch.bool)
    for finding in (one_step(nothing, nothing), black_box(nothing, nothing)):
        assert not finding.suspicious
        assert not finding.conclusive
    assert in_short((finding, finding)).endswith("in 0 checks; 2 had too few images to tell")


@pytest.mark.parametrize(
    ("right", "num", "num_classes", "suspicious", "conclusive"),
    [
        (10, 100, 10, True, True),
        (60, 100, 10, False, True),
        (113, 200, 2, False, True),
        (100, 200, 2, True, True),
        (0, 20, 100, False, False),
        (15, 20, 100, False, True),
    ],
)
def test_accuracy_at_chance_needs_enough_images(right, num, num_classes, suspicious, conclusive):
    finding = at_chance(right, num, num_classes)
    assert (finding.suspicious, finding.conclusive) == (suspicious, conclusive)


@pytest.mark.parametrize(
    ("logits", "suspicious"),
    [
        (torch.softmax(5 * torch.randn(30, 10), dim=1), True),
        (10 * torch.softmax(5 * torch.randn(30, 10), dim=1), True),
        (torch.softmax(5 * torch.randn(30, 10), dim=1).bfloat16().float(), True),
        (torch.sigmoid(5 * torch.randn(30, 10)), True),
        (1000 + torch.randn(30, 10), False),
        (0.2 + 0.03 * torch.randn(30, 100), False),
        (torch.randn(30, 10), False),
    ],
)
def test_probabilities_are_distinguished_from_logits(logits, suspicious):
    assert probabilities(logits).suspicious == suspicious


def test_rounding_of_equal_logits_is_not_a_difference():
    flat = torch.full((5, 10), 0.1)
    assert difference(flat, flat + 1e-8) < 1e-3
    common = 100 + torch.randn(5, 10)
    assert difference(common, common.bfloat16().float()) < 1
    assert difference(torch.randn(5, 10), torch.randn(5, 10)) > 0.1


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()).expand(3, 1, 1), persistent=False)
        self.register_buffer("unused", torch.full((2,), float("nan")))

    def forward(self, x):
        return x - self.mean


def test_static_checks_accept_buffers_of_all_kinds(honest, images):
    x, y = to_unit(images.images[:30]), images.labels[:30]
    checks = run_static_checks(Wrapped(honest, before=Buffers()), x, y)
    assert not any(finding.suspicious for finding in checks.findings)
    simple = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 256, 10)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have us use torch.compile
        traced = torch.jit.trace(simple, x)
    assert not any(finding.suspicious for finding in run_static_checks(traced, x, y).findings)


def test_logits_that_are_not_numbers_are_suspicious(honest, images):
    class Undefined(nn.Module):
        def forward(self, x):
            return x * float("nan")

    assert "outputs that are not finite" in suspicions(Wrapped(honest, after=Undefined()), images)


def robust(*indices, num=100):
    """Returns a mask of the robust images."""
    mask = torch.zeros(num, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def test_one_step_is_suspicious_if_it_breaks_more():
    assert one_step(robust(*range(40)), robust(*range(60))).suspicious
    assert not one_step(robust(*range(60)), robust(*range(40))).suspicious
    assert not one_step(robust(*range(59)), robust(*range(60))).suspicious, "chance"


def test_the_black_box_is_suspicious_if_it_breaks_images_that_gradients_do_not():
    assert black_box(robust(*range(10, 60)), robust(*range(60))).suspicious
    assert not black_box(robust(*range(90)), robust(*range(60))).suspicious
    assert not black_box(robust(*range(1, 60)), robust(*range(60))).suspicious


def test_a_curve_is_suspicious_if_it_rises_or_stays_above_chance():
    everything = float("inf")
    falls = {1.0: robust(*range(60)), 2.0: robust(*range(30)), everything: robust()}
    assert not radius_curve(falls, 100, 10).suspicious
    assert radius_curve(falls | {2.0: robust(*range(90))}, 100, 10).suspicious
    assert radius_curve(falls | {everything: robust(*range(30))}, 100, 10).suspicious
    assert not radius_curve(falls | {everything: robust(*range(12))}, 100, 10).suspicious, "chance"


def test_checks_do_not_change_the_network_or_random_state(honest, images):
    honest.train()
    torch.manual_seed(4)
    state, before = torch.get_rng_state(), [v.clone() for v in honest.state_dict().values()]
    findings(honest, images, num=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert honest.training
    assert all(torch.equal(a, b) for a, b in zip(honest.state_dict().values(), before, strict=True))
    honest.eval()


def test_a_network_that_is_always_wrong_is_suspicious(honest, images):
    class Wrong(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 11).index_fill(1, torch.tensor([10]), 1.0) + 0 * honest(
                x
            ).sum(1, keepdim=True)

    assert suspicions(Wrong(), images) == {
        "probabilities as outputs",
        "clean accuracy at chance",
        *BOTH_GRADIENTS,
    }
