"""Attacks of the user: what they are given, and what they must return."""

from __future__ import annotations

import copy

import pytest
import torch

from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch, run_attack
from raymi.errors import UserError
from raymi.models.modes import evaluation_mode

LINF = Threat("linf", 0.03)
GIVEN = {}


def batch(digits, num=6):
    return Batch(digits[0][:num], digits[1][:num], torch.arange(num), 7)


def mine(model, x, y, *, eps, norm, generator):
    GIVEN.update(x=x.clone(), y=y.clone(), eps=eps, norm=norm, training=model.training)
    start = x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)
    x.fill_(0)  # a copy
    start = start.clamp(0, 1).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(start), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, start)
    step = start.detach() + eps * gradient.sign()
    return torch.min(torch.max(step, GIVEN["x"] - eps), GIVEN["x"] + eps).clamp(0, 1)


def whole(model, x, y, *, eps, norm, generator):
    return (x + eps).clamp(max=1)


def too_far(model, x, y, *, eps, norm, generator):
    return (x + 1.1 * eps).clamp(max=1)


def out_of_range(model, x, y, *, eps, norm, generator):
    return x - eps


def undefined(model, x, y, *, eps, norm, generator):
    return x.index_fill(0, torch.tensor([1]), torch.nan)


def flat(model, x, y, *, eps, norm, generator):
    return x.flatten(1)


def pixels(model, x, y, *, eps, norm, generator):
    return (255 * x).byte()


def nothing(model, x, y, *, eps, norm, generator):
    return None


def train(model, x, y, *, eps, norm, generator):
    model.train()
    return x


def learn(model, x, y, *, eps, norm, generator):
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return x


def draw(model, x, y, *, eps, norm, generator):
    return x + 0 * torch.rand(x.shape)


def test_the_function_is_given_images_labels_threat_and_generator(model, digits):
    attack, some = find_attack("test_user_attack:mine"), batch(digits)
    first, second = (run_attack(attack, model, some, LINF) for _ in range(2))
    assert torch.equal(GIVEN["x"], digits[0][:6])
    assert torch.equal(GIVEN["y"], digits[1][:6])
    assert (GIVEN["eps"], GIVEN["norm"], GIVEN["training"]) == (0.03, "linf", False)
    assert torch.equal(first.x_adv, second.x_adv), "the generator has the seed of the block"
    assert torch.equal(some.x, digits[0][:6])
    assert first.usable.all()
    assert (first.linf > 0.02).all()


def test_a_radius_after_the_name_is_given_to_the_function(model, digits):
    run_attack(find_attack("test_user_attack:mine@2eps"), model, batch(digits), LINF)
    assert GIVEN["eps"] == 0.06


def test_misclassified_results_count(model, digits):
    some, threat = batch(digits, 40), Threat("linf", 0.1)
    found = run_attack(find_attack("test_user_attack:whole"), model, some, threat)
    x_adv = (some.x + 0.1).clamp(max=1)
    with evaluation_mode(model):
        expected = model(x_adv).argmax(1) != some.y
    assert torch.equal(found.x_adv, x_adv)
    assert torch.equal(found.broken, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_far", r"at linf distance 0\.033 with eps=0\.03: project x_adv"),
        ("out_of_range", r"got values in \[-0\.03, "),
        ("undefined", "got NaN or infinity in 1 of 6 images"),
        ("flat", r"must return x_adv \(6, 3, 16, 16\), got \(6, 768\) of torch.float32"),
        ("pixels", "of torch.uint8: keep the shape of x, in float"),
        ("nothing", "got NoneType: return a tensor"),
        ("train", "changed the mode of"),
    ],
)
def test_wrong_results_are_refused(name, message, model, digits):
    before = model.training
    with pytest.raises(UserError, match=message) as caught:
        run_attack(find_attack(f"test_user_attack:{name}"), model, batch(digits), LINF)
    assert f"attack 'test_user_attack:{name}' " in str(caught.value)
    assert model.training == before


def test_an_attack_that_changes_parameters_is_refused(model, digits):
    own = copy.deepcopy(model)
    with pytest.raises(UserError, match=r"changed .*weight: an attack must leave the model as it"):
        run_attack(find_attack("test_user_attack:learn"), own, batch(digits), LINF)


def test_l2_distances_are_checked_in_l2(model, digits):
    with pytest.raises(UserError, match=r"at l2 distance .* with eps=0\.03"):
        run_attack(find_attack("test_user_attack:whole"), model, batch(digits), Threat("l2", 0.03))


def test_the_global_random_state_is_restored(model, digits):
    torch.manual_seed(5)
    run_attack(find_attack("test_user_attack:draw"), model, batch(digits), LINF)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_user_attack:missing", "no function 'missing'"),
        ("no_such_module:f", "attack 'no_such_module:f': cannot import module"),
        ("test_user_attack:LINF", "not a function"),
        (":f", "must read package.module:function"),
        ("test_user_attack:batch", "the function is called with model, x, y, eps=, norm= and gen"),
    ],
)
def test_unknown_functions_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        find_attack(name)


def test_a_changed_file_is_refused(tmp_path, monkeypatch, model, digits):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "changing_attack.py"
    path.write_text("def f(model, x, y, *, eps, norm, generator):\n    return x\n")
    attack = find_attack("changing_attack:f")
    assert run_attack(attack, model, batch(digits), LINF).usable.all()
    path.write_text(path.read_text() + "\n# another\n")
    with pytest.raises(UserError, match="its file has changed since the evaluation began"):
        run_attack(attack, model, batch(digits), LINF)
    assert find_attack("changing_attack:f").inputs != attack.inputs
