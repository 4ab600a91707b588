"""Attacks by name: what they find is what their references find, and they leave nothing behind."""

from __future__ import annotations

import copy
import random

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from pyautoattack import AutoAttack
from torch import nn

from raymi.attacks.catalogue import ATTACKS, EvaluationAttack, Threat, find_attack
from raymi.attacks.execution import Batch, predicted, run_attack
from raymi.attacks.suites import CORRUPTIONS, SUITES, ensembles_of, suite
from raymi.errors import UserError
from raymi.models.modes import evaluation_mode

LINF, L2 = Threat("linf", 0.03), Threat("l2", 0.3)
FAST = [
    "fgsm", "pgd-5", "pgd-3x2", "apgd-ce", "apgd-dlr", "fwa-40", "ti-dim", "cw", "ddn",
]  # fmt: skip


def threat_of(name):
    return L2 if name in ("cw", "ddn") else LINF


def batch(digits, num=12, seed=7):
    return Batch(digits[0][:num], digits[1][:num], torch.arange(num), seed)


class Sliced(nn.Module):
    """A classifier of the first K digits."""

    def __init__(self, model, num_classes):
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, x):
        return self.model(x)[:, : self.num_classes]


def seed_everything(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def random_numbers():
    """Returns a number of each global generator."""
    return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002


def small_network(digits):
    """Two layers that have learned the digits."""
    x, y = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 24), nn.Tanh(), nn.Linear(24, 10))
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.exhaustive)])
def test_autoattack_by_parts_equals_the_reference(digits, norm):
    """Each part on those that withstood, in one batch: 5,000 queries of Square included."""
    model = small_network(digits)  # thousands of passes
    threat = Threat("linf", 0.02) if norm == "linf" else Threat("l2", 0.25)
    whole = batch(digits, 8)
    with evaluation_mode(model):
        reference = AutoAttack(
            model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=threat.eps, seed=7
        )
        expected, labels = reference.run_standard_evaluation(whole.x, whole.y, batch_size=8)
        left = model(whole.x).argmax(1) == whole.y
    x_adv = whole.x.clone()
    (ensemble,) = ensembles_of(["autoattack"], threat, 10)
    for attack in ensemble.attacks:
        rest = Batch(whole.x[left], whole.y[left], whole.index[left], 7)
        found = run_attack(attack, model, rest, threat)
        places = left.nonzero().flatten()[found.broken]
        x_adv[places] = found.x_adv[found.broken]
        left[places] = False
    assert torch.equal(x_adv, expected)
    assert torch.equal(left, labels == whole.y)
    assert 0 < int(left.sum()) < 8, "some are broken and some are not, or this shows little"


def test_pgd_breaks_the_union_over_restarts(model, digits):
    whole = batch(digits, 40)
    once, thrice = (
        run_attack(find_attack(name), model, whole, LINF) for name in ("pgd-3", "pgd-3x3")
    )
    assert (once.broken <= thrice.broken).all()
    again = run_attack(find_attack("pgd-3x3"), model, whole, LINF)
    assert torch.equal(again.x_adv, thrice.x_adv)
    part = Batch(whole.x[5:9], whole.y[5:9], whole.index[5:9], 7)
    alone = run_attack(find_attack("pgd-3"), model, part, LINF)
    torch.testing.assert_close(alone.x_adv, once.x_adv[5:9], rtol=0, atol=1e-6)


def test_ti_dim_equals_torchattacks(model, digits):
    whole = batch(digits)
    found = run_attack(ATTACKS["ti-dim"], model, whole, LINF)
    torch.manual_seed(7)
    theirs = torchattacks.TIFGSM(
        model, eps=0.03, alpha=0.007, steps=40, decay=0.1, len_kernel=15, nsig=3
    )
    assert torch.equal(found.x_adv, theirs(whole.x, whole.y))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("ddn", foolbox.attacks.DDNAttack(steps=20, gamma=0.05)),
        (
            "cw",
            foolbox.attacks.L2CarliniWagnerAttack(
                binary_search_steps=4, steps=20, stepsize=0.01, abort_early=False
            ),
        ),
    ],
)
def test_cw_and_ddn_agree_with_foolbox(name, theirs, model, digits):
    whole = batch(digits)
    with evaluation_mode(model):
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1))
        _, expected, success = theirs(bounded, whole.x, whole.y, epsilons=None)
    distances = (expected - whole.x).flatten(1).norm(dim=1)
    eps = distances[success].median().item() + 1e-4
    found = run_attack(ATTACKS[name], model, whole, Threat("l2", eps))
    assert torch.equal(found.x_adv, expected)
    assert torch.equal(found.broken, success & (found.l2 <= eps))
    assert found.broken.any()
    assert (found.l2 > eps).any(), "what is further away is found, and does not count"


@pytest.mark.parametrize("name", [*FAST, "apgd-t", "malt", "fab-t", "fab-plus", "square-1000"])
def test_model_and_random_state_are_unchanged(name, model, digits):
    model.train()
    next(one for one in model.modules() if isinstance(one, nn.BatchNorm2d)).eval()
    handle = model.register_forward_hook(lambda *_: None)
    parameter = next(model.parameters())
    parameter.requires_grad_(False)
    given = torch.ones_like(list(model.parameters())[-1])
    list(model.parameters())[-1].grad = given
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    seed_everything(11)
    try:
        run_attack(find_attack(name), model, batch(digits, 3), threat_of(name))
        drawn = random_numbers()
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not parameter.requires_grad
        assert list(model.parameters())[-1].grad is given
        assert len(model._forward_hooks) == 1
        assert all(not module._forward_hooks for module in list(model.modules())[1:])
    finally:
        handle.remove()
        parameter.requires_grad_(True)
        model.zero_grad()
        model.eval()
    seed_everything(11)
    assert drawn == random_numbers()


@pytest.mark.parametrize("name", FAST)
def test_the_same_seed_gives_the_same_samples(name, model, digits):
    whole = batch(digits, 6)
    threat = Threat(threat_of(name).norm, 10 * threat_of(name).eps)
    one = run_attack(find_attack(name), model, whole, threat)
    random_numbers()
    other = run_attack(find_attack(name), model, whole, threat)
    assert torch.equal(one.x_adv, other.x_adv)
    assert one.usable.all()
    assert one.broken.any()
    assert one.x_adv.shape == whole.x.shape
    nobody = Batch(whole.x[:0], whole.y[:0], whole.index[:0], 7)
    assert run_attack(find_attack(name), model, nobody, threat).broken.shape == (0,)


def test_an_attack_s_radius_multiplies_the_threat_s(model, digits):
    whole = batch(digits)
    twice = run_attack(find_attack("pgd-5@2eps"), model, whole, LINF)
    same = run_attack(find_attack("pgd-5"), model, whole, Threat("linf", 0.06))
    assert torch.equal(twice.x_adv, same.x_adv)
    assert torch.equal(twice.broken, same.broken)
    assert run_attack(find_attack("pgd-5@any"), model, whole, LINF).broken.all()
    with pytest.raises(UserError, match=r"expected a radius such as @2eps"):
        find_attack("pgd-5@2")


class Drawing(nn.Module):
    """A classifier that draws from numpy's generator, as some defenses do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + np.random.rand()  # noqa: NPY002


def test_random_numbers_of_a_network_depend_on_the_seed(model, digits):
    found = []
    for _ in range(2):
        found.append(run_attack(find_attack("pgd-2"), Drawing(model), batch(digits), LINF).x_adv)
        random_numbers()
    assert torch.equal(*found)


def test_invalid_samples_do_not_count(model, digits):
    whole = batch(digits, 4)

    def cheat(model, given, threat):
        far = given.x.clone()
        far[0] = float("nan")
        far[1] = 1.5
        far[2] = (given.x[2] - 0.5).abs()  # an image, and far away
        return far

    wrong = Batch(whole.x, (whole.y + 1) % 10, whole.index, 7)  # misclassified in any case
    found = run_attack(EvaluationAttack("cheat", cheat), model, wrong, LINF)
    assert not found.broken[:3].any()
    assert found.usable.tolist() == [False, False, True, True]
    with evaluation_mode(model):
        assert found.broken[3] == (model(whole.x).argmax(1) != wrong.y)[3]


class Undefined(nn.Module):
    """A classifier with a gradient that is not a number in one pixel, or such logits altogether."""

    def __init__(self, model, logits=False):
        super().__init__()
        self.model, self.logits = model, logits

    def forward(self, x):
        broken = (0 * x[..., 0, 0]).sqrt().sum(1, keepdim=True)
        return self.model(x) + (float("nan") if self.logits else 0 * broken)


def test_one_nan_gradient_does_not_stop_fwa(model, digits):
    whole, threat = batch(digits, 10), Threat("linf", 0.3)
    honest, undefined = (
        run_attack(ATTACKS["fwa-40"], one, whole, threat) for one in (model, Undefined(model))
    )
    assert undefined.usable.all()
    assert undefined.broken.sum() >= honest.broken.sum() - 1 > 3


def test_nan_logits_give_no_class(model, digits):
    zeros = Batch(digits[0][:4], torch.zeros(4, dtype=torch.int64), torch.arange(4), 7)
    found = run_attack(find_attack("pgd-2"), Undefined(model, logits=True), zeros, LINF)
    assert found.prediction.tolist() == [-1] * 4
    assert found.broken.all()


@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_few_samples_and_few_classes_are_attacked(norm, num_classes, num, model, digits):
    few = digits[1] < num_classes
    some = Batch(digits[0][few][:num], digits[1][few][:num], torch.arange(num), 1)
    threat, small = (LINF if norm == "linf" else L2), Sliced(model, num_classes)
    names = [n for n in [*FAST, "fab-t"] if find_attack(n).problem(threat, num_classes, 3) is None]
    assert len(names) >= 4
    for name in names:
        found = run_attack(find_attack(name), small, some, threat)
        assert found.usable.all(), name


def test_minus_infinity_excludes_its_class_only(model, digits):
    class Masked(nn.Module):
        def forward(self, x):
            return model(x).index_fill(1, torch.tensor([9]), -torch.inf)

    some = digits[1] != 9
    whole = Batch(digits[0][some][:20], digits[1][some][:20], torch.arange(20), 7)
    with evaluation_mode(model):
        expected = model(whole.x)[:, :9].argmax(1)
    assert torch.equal(predicted(Masked(), whole.x), expected)
    assert run_attack(find_attack("fgsm"), Masked(), whole, LINF).usable.all()


class Counting(nn.Module):
    """Answers by how often it was asked, in eval mode, too."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x):
        self.asked = self.asked + 1
        self.asked += 1
        return self.model(x) * self.asked


def test_buffers_changed_by_forwards_are_restored(model, digits):
    counting = Counting(model)
    buffer = counting.asked
    run_attack(find_attack("pgd-2"), counting, batch(digits, 3), LINF)
    assert counting.asked is buffer
    assert counting.asked == 0


def test_targeted_attacks_use_all_classes_if_there_are_few(model, digits):
    few = digits[1] < 5
    some = Batch(digits[0][few][:3], digits[1][few][:3], torch.arange(3), 1)
    for name in ("apgd-t", "malt", "fab-t"):
        assert run_attack(find_attack(name), Sliced(model, 5), some, LINF).x_adv.isfinite().all()


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_valid_for_its_threat(name):
    threat = L2 if name == "paper-l2" else LINF
    names = [one for one in suite(name) if one != CORRUPTIONS]  # they depend on files
    ensembles = ensembles_of(names, threat, 3 if name == "few-classes" else 10)
    assert [ensemble.name for ensemble in ensembles] == names
    assert all(ensemble.attacks for ensemble in ensembles)


def test_duplicate_names_count_once():
    assert len(ensembles_of(["pgd-2", "autoattack", "pgd-2"], LINF, 10)) == 2


def test_autoattack_is_the_standard_ensemble():
    (ensemble,) = ensembles_of(["autoattack"], LINF, 10)
    assert [attack.settings["part"] for attack in ensemble.attacks] == AutoAttack(
        nn.Identity()
    ).attacks_to_run
    (plus,) = ensembles_of(["autoattack-plus"], LINF, 10)
    assert {attack.settings["part"] for attack in plus.attacks} == set(
        AutoAttack(nn.Identity(), version="plus").attacks_to_run
    )


@pytest.mark.parametrize(
    ("num_classes", "attacks"),
    [
        (2, ["apgd-ce", "fab-t", "square"]),
        (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
    ],
)
def test_few_classes_have_autoattack_s_parts_that_are_defined(num_classes, attacks):
    (ensemble,) = ensembles_of(["few-classes"], LINF, num_classes)
    assert [attack.name for attack in ensemble.attacks] == attacks
    assert ensemble.note == (
        f"few-classes is weaker than AutoAttack: {', '.join(attacks)}, without apgd-t, which needs "
        "4 classes"
    )
    for name in ("autoattack", "autoattack-plus", "fast"):
        with pytest.raises(UserError, match="needs at least 4 classes"):
            ensembles_of([name], LINF, num_classes)


@pytest.mark.parametrize(
    ("names", "threat", "num_classes", "channels", "message"),
    [
        (["autoattack"], LINF, 3, 3, "apgd-t needs at least 4 classes, got 3"),
        (["apgd-dlr"], LINF, 2, 3, "apgd-dlr needs at least 3 classes, got 2"),
        (["ti-dim"], LINF, 10, 1, "ti-dim needs images of 3 channels, got 1"),
        (["cw"], LINF, 10, 3, "cw is an attack in l2, not in linf"),
        (["fwa-40"], L2, 10, 3, "fwa-40 is an attack in linf, not in l2"),
        (["pdg-20"], LINF, 10, 3, "unknown attack 'pdg-20': did you mean pgd-N"),
        (["pgd-0"], LINF, 10, 3, "unknown attack 'pgd-0'"),
        (["malt"], LINF, 3, 3, "malt needs at least 4 classes, got 3"),
        (["few-classes"], LINF, 4, 3, "leaves out apgd-t, which 4 classes allow: give autoattack"),
    ],
)
def test_unusable_attacks_are_refused_with_the_reason(
    names, threat, num_classes, channels, message
):
    with pytest.raises(UserError, match=message):
        ensembles_of(names, threat, num_classes, channels)


def test_unknown_suites_get_a_hint():
    with pytest.raises(UserError, match="unknown suite 'papr-linf': did you mean paper-linf"):
        suite("papr-linf")


class ToHalf(nn.Module):
    """Computes in bf16, and answers in it."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).bfloat16()

    def forward(self, x):
        return self.model(x.bfloat16())


@pytest.mark.parametrize("name", ["pgd-2", "square-1000", "cw"])
def test_a_network_in_half_precision_can_be_attacked(name, model, digits):
    some = batch(digits, 3)
    found = run_attack(find_attack(name), ToHalf(model), some, threat_of(name))
    assert found.x_adv.dtype == torch.float32
    assert found.x_adv.isfinite().all()
