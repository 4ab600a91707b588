"""Forms without estimators in a run: their limits, the teacher's average, resume, other options."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_loop import events, expect_equal_runs
from tiny_runs import same, steps_in_float64, tiny_config, tiny_run, tiny_state

from raymi.losses.registry import losses
from raymi.models.ema import WeightEMA
from raymi.runs.checkpoint import load_checkpoint
from raymi.runs.run_folder import RunFolder

NO_ESTIMATORS = {"mi.hidden": None, "mi.base_width": None, "mi.depth": None}
FORMS = {form: {"mi.form": form, **NO_ESTIMATORS} for form in ("teacher", "adr", "js")}
PERTURBED = {"optim.awp": 0.02, "optim.awp_warmup": 0}
NORM_FREE = {
    "model.name": "tiny_runs:norm_free_net", "model.width": None, "model.depth": None
}  # fmt: skip


def first_batch(settings):
    state, loader = tiny_state(tiny_config(settings))
    return state, next(loader.epoch(0))


@pytest.mark.parametrize("form", FORMS)
def test_a_form_alone_trains_and_logs_its_bounds(form, tmp_path):
    tiny_run(0, 1, tmp_path, FORMS[form], [])
    names = {"mi/js"} if form == "js" else {"mi/natural_lower", "mi/adversarial_upper"}
    for event in events(tmp_path, "epoch"):
        for metrics in (event["train"], event["val"]):
            assert names <= set(metrics)
            assert all(math.isfinite(metrics[name]) for name in names)
        if form == "js":
            assert 0 <= event["val"]["mi/js"] <= math.log(2)
        else:
            assert event["val"]["mi/natural_lower"] <= math.log(10)
            assert event["val"]["mi/adversarial_upper"] >= 0
            assert 0.1 <= event["train"]["mi/teacher_max"] <= 1


def test_without_noise_the_first_teacher_is_the_model_and_its_divergences_are_0():
    settings = {**FORMS["teacher"], **NORM_FREE, "attack.eps": 0.0}
    state, batch = first_batch(settings)
    metrics = state.step(batch)
    for name in ("loss_mi", "mi/adversarial_upper"):
        assert abs(metrics[name]) < 1e-6
    assert state.step(batch)["mi/adversarial_upper"] < 1e-6  # the average's first value
    assert state.step(batch)["mi/adversarial_upper"] > 1e-6


def test_adr_without_trust_is_adversarial_training():
    adr = {**FORMS["adr"], "mi.weight": "linear:0:0"}
    (one, weights), (other, expected) = (
        steps_in_float64(0, 1, settings, 7) for settings in (adr, {"mi.weight": 0})
    )
    assert [m["loss"] for m in one] == pytest.approx([m["loss"] for m in other], rel=1e-9)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("form", ["teacher", "adr"])
def test_the_teacher_is_an_average_of_its_own(form):
    settings = {**FORMS[form], "mi.teacher_ema": 0.3, "optim.ema": 0.5}
    state, loader = tiny_state(tiny_config(settings))
    expected = {decay: WeightEMA(state.model, decay) for decay in (0.3, 0.5)}
    batches = list(loader.epoch(0))
    for batch in batches * 2:
        before = copy.deepcopy(state.mi.average.model.state_dict())
        state.mi.target(*batch)
        assert same(before, state.mi.average.model.state_dict())  # its statistics, too
        state.step(batch)
        for average in expected.values():
            average.update(state.model)
    assert same(state.mi.average.model.state_dict(), expected[0.3].model.state_dict())
    assert same(state.average.model.state_dict(), expected[0.5].model.state_dict())
    assert not same(expected[0.3].model.state_dict(), expected[0.5].model.state_dict())


@pytest.mark.parametrize("awp", [False, True])
def test_loss_attack_and_worst_weights_have_the_same_soft_target(awp):
    state, batch = first_batch({**FORMS["adr"], **(PERTURBED if awp else {})})
    target = state.mi.target(*batch)
    assert target.shape == (44, 10)
    assert (target.argmax(1) == batch.y).any()
    seen, step = [], state.training_step
    attack, loss = step.attack.__class__.__call__, step.loss.__class__.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(step.attack), "__call__", lambda s, x, y, h: seen.append(y) or attack(s, x, y, h)
        )
        patch.setattr(
            type(step.loss), "__call__",
            lambda s, z, a, y, h: seen.append(y) or loss(s, z, a, y, h),
        )  # fmt: skip
        state.step(batch)
    assert len(seen) == (3 if awp else 2)
    assert all(torch.equal(one, target) for one in seen)


@pytest.mark.parametrize(
    ("form", "loss"),
    [("adr", "at"), *((form, loss) for form in ("teacher", "js") for loss in losses())],
)
def test_forms_train_with_every_loss_and_option(form, loss):
    """Also with a balanced weight, where the form adds a term to the loss."""
    balance = {} if form == "adr" else {"mi.balance": 0.2}
    for options in (
        {"scaling.precision": "bf16", "scaling.micro_batch": 20, "optim.ema": 0.9} | PERTURBED,
        balance,
    ):
        state, loader = tiny_state(tiny_config(FORMS[form] | options | {"loss.base": loss}))
        for batch in loader.epoch(0):
            metrics = state.step(batch)
            assert all(value.isfinite() for value in metrics.values())
        assert not state.modules_not_finite()
        assert state.estimators is None


def test_a_teacher_in_micro_batches_is_the_whole_one():
    settings = {**FORMS["teacher"], **NORM_FREE}
    pieces = steps_in_float64(0, 1, settings | {"scaling.micro_batch": 7}, 6)
    whole = steps_in_float64(0, 1, settings, 6)
    assert pieces[0][-1] == pytest.approx(whole[0][-1], rel=1e-9)


def test_reported_mi_has_negatives_of_all_classes():
    """Other negatives change the objective and so the next step, but not the first estimates."""
    (one, weights), (other, others) = (
        steps_in_float64(0, 1, {"mi.negative_classes": classes}, 2) for classes in ("all", "other")
    )
    names = ("mi/natural", "mi/natural_dv", "mi/adversarial", "mi/adversarial_dv")
    assert [one[0][name] for name in names] == [other[0][name] for name in names]
    assert "mi/natural_of_adversarial" in one[0].keys() - other[0].keys()
    assert one[1]["mi/natural"] != other[1]["mi/natural"]
    assert not same(weights, others)


RESUMED = {
    "teacher": {**FORMS["teacher"], "loss.base": "trades", **PERTURBED},
    "adr": {**FORMS["adr"], "optim.ema": 0.9},
    "js": {**FORMS["js"], "loss.base": "ikl"},
    "other classes": {"mi.negative_classes": "other", "mi.natural_cap": True},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
def test_a_run_that_was_stopped_ends_with_the_same_bits(settings, tmp_path):
    for name, stops in (("whole", []), ("stopped", [0, 3, 5])):
        tiny_run(0, 1, tmp_path / name, settings, stops)
    expect_equal_runs(tmp_path / "whole", tmp_path / "stopped")
    term = load_checkpoint(RunFolder(tmp_path / "whole").checkpoints)["terms"]["mi"]
    has_teacher = settings.get("mi.form") in ("teacher", "adr")
    assert term.get("steps") == (10 if has_teacher else None)
