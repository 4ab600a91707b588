"""Training step: its effect on classifier and estimators, and its order."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from gloo import run_ranks
from tiny_runs import tiny_config, tiny_state

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.collectives import Collectives, ProcessGroup
from raymi.engine.metrics import MetricMeans
from raymi.mi.estimators import MIEstimators
from raymi.mi.forms.estimated import EstimatedMI

PAPER = {"mi.form": "paper", "mi.hidden": 16}


def first_batch(settings=None):
    state, loader = tiny_state(tiny_config(settings))
    return state, next(loader.epoch(0))


def attacked(state, batch):
    return state.attack(batch.x, batch.y, batch.shard)


def keyed(batch, key):
    """The batch with another key of its random numbers."""
    return batch._replace(shard=replace(batch.shard, key=key))


def estimators_see(state, batch, x_adv):
    """Arguments of the estimators' task: the batch and the classifier's detached outputs."""
    with torch.no_grad():
        outputs = state.model(batch.x), state.model(x_adv)
    return batch.x, x_adv, *outputs, batch.y, batch.shard


def buffers(module):
    return {k: v.clone() for k, v in module.named_buffers()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_without_mi_training_is_plain_adversarial_training_bit_for_bit():
    config = tiny_config({"mi.weight": 0, "optim.schedule": "constant"})
    state, loader = tiny_state(config)
    twin = copy.deepcopy(state.model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for batch in loader.epoch(0):
        state.step(batch)
        start = random_start(batch.x, 0.2, "linf", batch.shard.key, batch.shard.index)
        x_adv = pgd(twin, batch.x, batch.y, eps=0.2, alpha=0.05, steps=2, start=start)
        loss = F.cross_entropy(twin(x_adv), batch.y, reduction="sum") / len(batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert state.estimators is None
    assert same(state.model.state_dict(), twin.state_dict())


def test_the_initial_classifier_does_not_depend_on_the_estimators():
    plain, _ = tiny_state(tiny_config({"mi.weight": 0}))
    with_estimators, _ = tiny_state(tiny_config())
    assert same(plain.model.state_dict(), with_estimators.model.state_dict())
    other_seed, _ = tiny_state(tiny_config({"seed": 1}))
    assert not same(plain.model.state_dict(), other_seed.model.state_dict())


def test_the_initial_estimators_do_not_depend_on_the_classifier():
    thin, _ = tiny_state(tiny_config())
    wide, _ = tiny_state(tiny_config({"model.width": 1.0, "model.depth": 7}))
    assert same(thin.estimators.state_dict(), wide.estimators.state_dict())
    natural, adversarial = thin.estimators.natural, thin.estimators.adversarial
    assert not same(natural.state_dict(), adversarial.state_dict())


def test_building_a_run_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    tiny_state(tiny_config())
    assert torch.equal(before, torch.get_rng_state())


def test_the_step_learns_the_estimators_first_and_from_the_same_two_forwards():
    state, batch = first_batch(PAPER)  # the form that needs most outputs
    events = []
    state.model.register_forward_hook(lambda m, a, z: events.append("forward"))
    for estimator in (state.estimators.natural, state.estimators.adversarial):
        convolution = next(m for m in estimator.local.modules() if isinstance(m, torch.nn.Conv2d))
        convolution.register_forward_hook(
            lambda m, a, z: events.append("estimator learns" if m.training else "estimator frozen")
        )
    for name in ("classifier", "estimator_learner"):
        optimizer = getattr(state, name).optimizer
        optimizer.register_step_post_hook(lambda *_, name=name: events.append(f"{name} stepped"))
    state.step(batch)
    assert events == [
        *["forward"] * (2 + 2),  # two of the attack, then h(x) and h(x_adv)
        "estimator learns", "estimator learns", "estimator_learner stepped",
        "estimator frozen", "estimator frozen", "classifier stepped",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [({"mi.weight": 0}, 1), ({"mi.weight": 0, "loss.base": "mart"}, 2), ({}, 2), (PAPER, 2)],
    ids=["at", "mart", "bounded", "paper"],
)
def test_each_image_goes_through_the_classifier_once(settings, forwards):
    state, batch = first_batch(settings)
    count = [0]
    state.model.register_forward_hook(lambda m, a, z: count.__setitem__(0, count[0] + 1))
    state.step(batch)
    assert count == [2 + forwards]


@pytest.mark.parametrize("settings", [{}, PAPER], ids=["bounded", "paper"])
def test_estimators_are_frozen_while_the_classifier_learns(settings):
    state, batch = first_batch(settings)
    estimators = state.estimators
    estimators.natural.local.head.eval()  # flags of single modules come back, too
    flags = [module.training for module in estimators.modules()]
    before = {k: v.clone() for k, v in estimators.state_dict().items()}
    seen = []
    for estimator in (estimators.natural, estimators.adversarial):
        for module in estimator.modules():
            module.register_forward_hook(lambda m, a, z: seen.append(m.training))
    x, y, shard = batch
    outputs = state.model(x), state.model(attacked(state, batch))
    loss, _ = state.mi(x, attacked(state, batch), *outputs, y, shard)
    loss.backward()
    assert seen
    assert not any(seen)
    assert all(p.grad is None for p in estimators.parameters())
    assert same(before, estimators.state_dict())
    assert flags == [module.training for module in estimators.modules()]


def test_estimators_learn_in_train_mode_and_the_classifier_learns_nothing_from_them():
    state, batch = first_batch()
    before = buffers(state.estimators)
    seen = estimators_see(state, batch, attacked(state, batch))
    loss, _ = state.estimator_learner.task(*seen)
    state.estimator_learner.step(loss)
    assert all(p.grad is None for p in state.model.parameters())
    assert all(p.grad is not None for p in state.estimators.parameters())
    assert not same(before, buffers(state.estimators))


@pytest.mark.parametrize(
    "settings",
    [{}, PAPER, {"loss.base": "trades"}, {"loss.base": "mart", "mi.weight": 0}],
    ids=["bounded", "paper", "trades", "mart"],
)
def test_running_statistics_follow_the_adversarial_batch_alone(settings):
    state, batch = first_batch(settings)
    twin = copy.deepcopy(state.model)
    twin(attacked(state, batch))
    state.step(batch)
    assert same(buffers(twin), buffers(state.model))


@pytest.mark.parametrize(
    ("settings", "objective"),
    [({}, "ce"), ({"loss.base": "trades"}, "kl"), ({"loss.base": "mart"}, "ce"),
     ({"attack.objective": "kl"}, "kl")],
)  # fmt: skip
def test_the_attack_maximises_the_objective_of_the_loss(settings, objective):
    state, _ = first_batch(settings)
    assert state.attack.objective == objective


def test_adversarial_samples_are_a_function_of_key_and_sample():
    state, batch = first_batch()
    x_adv = attacked(state, batch)
    assert torch.equal(x_adv, attacked(state, batch))
    assert not torch.equal(x_adv, attacked(state, keyed(batch, 1)))
    assert (x_adv - batch.x).abs().max() <= 0.2 + 2.0**-24


def small(batch, num):
    """The first samples of a batch, as a global batch of their own."""
    shard = replace(batch.shard, sizes=(num,), index=batch.shard.index[:num])
    return batch._replace(x=batch.x[:num], y=batch.y[:num], shard=shard)


FRAGILE = {
    "bounded": {},
    "paper": PAPER,
    "dv": {"mi.bound": "dv"},
    "clipped contrast": {"mi.objective": "contrast", "mi.samples": "selected"},
    "local negatives": {"mi.negatives": "local"},
    "natural only": {"mi.adversarial": False},
    "adversarial only": {"mi.natural": False},
}


@pytest.mark.parametrize("settings", FRAGILE.values(), ids=FRAGILE.keys())
@pytest.mark.parametrize("num", [1, 2])
def test_the_smallest_batches_give_finite_losses_and_weights(settings, num):
    state, batch = first_batch(settings)
    for _ in range(3):
        metrics = state.step(small(batch, num))
        assert all(value.isfinite() for value in metrics.values())
    for module in (state.model, state.estimators):
        assert all(value.isfinite().all() for value in module.state_dict().values())


def test_a_single_sample_has_no_negatives_and_trains_by_the_base_method():
    state, batch = first_batch()
    before = {k: v.clone() for k, v in state.estimators.state_dict().items()}
    metrics = state.step(small(batch, 1))
    assert torch.equal(metrics["loss"], metrics["loss_adv"])
    assert same(before, state.estimators.state_dict())


@pytest.mark.parametrize("settings", FRAGILE.values(), ids=FRAGILE.keys())
def test_without_noise_and_so_without_a_selection_everything_stays_finite(settings):
    state, loader = tiny_state(tiny_config({**settings, "attack.eps": 0.0}))
    for batch in loader.epoch(0):
        metrics = state.step(batch)
        assert all(value.isfinite() for value in metrics.values())
    if state.config.mi.samples == "selected":
        assert metrics["loss_mi"] == 0
        assert metrics["mi/selected"] == 0


@pytest.mark.parametrize("settings", FRAGILE.values(), ids=FRAGILE.keys())
def test_one_class_only_stays_finite(settings):
    state, batch = first_batch(settings)
    for _ in range(3):
        metrics = state.step(batch._replace(y=torch.zeros_like(batch.y)))
        assert all(value.isfinite() for value in metrics.values())


def metrics_of_a_step(settings, group, sizes):
    """A step on the first 16 images of the epoch, shared with other workers."""
    config = tiny_config(settings)
    _, loader = tiny_state(config, Collectives())
    state, _ = tiny_state(config, group)
    means = MetricMeans()
    batch = small(next(loader.epoch(0)), 16)
    shard = replace(batch.shard, sizes=sizes, group=group)
    means.add(state.step(batch._replace(shard=shard)), 1)
    return means.means(group)


def two_workers_with_the_same_images(rank, world_size, settings):
    return metrics_of_a_step(settings, ProcessGroup(), (16, 16))


def test_local_negatives_equal_those_of_the_own_share(tmp_path):
    """Two workers with the same images see what one alone with them sees; with global negatives
    each of them would find every pattern among its negatives."""
    expected = metrics_of_a_step({"mi.weight": 1}, Collectives(), (16,))
    for negatives, agrees in (("local", True), ("global", False)):
        settings = {"mi.weight": 1, "mi.negatives": negatives}
        for rank in run_ranks(two_workers_with_the_same_images, 2, settings, tmp_path=tmp_path):
            for name in ("mi/natural_dv", "mi/adversarial_dv", "loss_adv"):
                same = rank[name] == pytest.approx(expected[name], rel=1e-4)
                assert same == (agrees or name == "loss_adv")


def test_bfloat16_trains_every_parameter_with_finite_numbers():
    """Also those whose weights an earlier forward without gradient has cast."""
    for settings in ({}, PAPER, {"loss.base": "trades"}):
        state, loader = tiny_state(tiny_config({**settings, "scaling.precision": "bf16"}))
        for batch in loader.epoch(0):
            metrics = state.step(batch)
            assert all(value.isfinite() for value in metrics.values())
        for name, parameter in state.model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        weights = state.model.state_dict().values()
        assert all(v.dtype == torch.float32 for v in weights if v.is_floating_point())


def test_losses_are_of_single_precision_outputs_under_bfloat16():
    state, batch = first_batch({"scaling.precision": "bf16", "loss.base": "trades"})
    logits, logits_adv = state.classifier.task(batch.x, batch.x, batch.shard)
    assert logits.dtype == logits_adv.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())  # the network itself ran in bf16


class Known(torch.nn.Module):
    """Estimator whose scores are the outputs times a factor, for any pattern."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def global_features(self, z):
        return self.factor * z

    def local_features(self, u):
        return torch.eye(len(u))[:, :, None]


@pytest.mark.parametrize("score", [-8.0, 2.0, 8.0])
@pytest.mark.parametrize(
    ("bound", "natural", "adversarial"),
    [
        ("infonce", (-math.inf, math.inf), (0.0, math.inf)),
        ("dv", (0.0, math.log(43)), (0.0, math.log(43))),
    ],
)
def test_clamps_are_at_the_limits_of_the_bound(bound, natural, adversarial, score, monkeypatch):
    """Pairs score `score` by the natural estimator and -`score` by the other, all else scores 0."""
    monkeypatch.setattr(
        "raymi.mi.estimation.global_features_of",
        lambda estimators, outputs: [
            one.global_features(z) for one, z in zip(estimators, outputs, strict=True)
        ],
    )
    settings = {"mi.bound": bound, "mi.samples": "all", "mi.difference": 0.5}
    state, batch = first_batch(settings)
    logits = score * torch.eye(len(batch.y))
    term = EstimatedMI(MIEstimators(Known(1), Known(-1)), state.config.mi)
    loss, metrics = term(batch.x, batch.x, logits, logits, batch.y, batch.shard)
    of_natural = metrics["mi/natural_of_adversarial"]
    of_adversarial = metrics["mi/adversarial_of_adversarial"]
    assert (of_natural > 0) == (score > 0) == (of_adversarial < 0)
    if bound == "dv":
        assert (of_natural > math.log(43)) == (score == 8)
    expected = 0.5 * (of_adversarial.clamp(*adversarial) - of_natural.clamp(*natural))
    torch.testing.assert_close(loss, expected)


def test_classifier_and_estimators_have_separate_optimisers():
    state, _ = first_batch()
    groups = {
        name: {id(p) for g in learner.optimizer.param_groups for p in g["params"]}
        for name, learner in (("model", state.classifier), ("estimators", state.estimator_learner))
    }
    assert groups["model"] == {id(p) for p in state.model.parameters()}
    assert groups["estimators"] == {id(p) for p in state.estimators.parameters()}


@pytest.mark.parametrize("batchnorm", ["mix", "released"])
@pytest.mark.parametrize("weight", [0, 0.1])
def test_steps_with_other_running_statistics_train(batchnorm, weight):
    settings = {"loss.batchnorm": batchnorm, "mi.weight": weight, "loss.base": "trades"}
    state, loader = tiny_state(tiny_config(settings))
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    for batch in loader.epoch(0):
        metrics = state.step(batch)
    assert all(torch.isfinite(value) for value in metrics.values())
    changed = [k for k, v in state.model.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == len(before) - 2  # all but the normalisation's mean and std


@pytest.mark.parametrize("base", ["at", "trades"])
def test_the_random_control_adds_noise_of_the_same_norm_and_nothing_else(base):
    settings = {"loss.base": base, "mi.form": "random", "mi.balance": 0.3}
    state, loader = tiny_state(tiny_config(settings))
    assert state.estimators is None
    assert state.estimator_learner is None
    batch = next(iter(loader.epoch(0)))
    metrics = state.step(batch)
    expected = 0.3 * metrics["grad_norm_adv"].item()
    assert metrics["mi/grad_norm"].item() == pytest.approx(expected, rel=1e-5)
    again, _ = tiny_state(tiny_config(settings))
    other, _ = tiny_state(tiny_config({**settings, "mi.balance": 0}))
    again.step(batch)
    other.step(batch)
    weights = [dict(s.model.state_dict()) for s in (state, again, other)]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert not all(torch.equal(v, weights[2][k]) for k, v in weights[0].items())


def test_attacks_with_folded_batchnorm_agree_to_rounding():
    torch.set_default_dtype(torch.float64)
    try:
        crafted_samples = []
        for folded in (False, True):
            state, loader = tiny_state(tiny_config({"scaling.fold_batchnorm": folded}))
            for batch in loader.epoch(0):
                x = batch.x.double()
                crafted_samples.append(state.attack(x, batch.y, batch.shard))
                state.step(batch._replace(x=x))
    finally:
        torch.set_default_dtype(torch.float32)
    half = len(crafted_samples) // 2
    for one, other in zip(crafted_samples[:half], crafted_samples[half:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
