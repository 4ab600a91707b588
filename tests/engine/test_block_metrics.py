"""MI estimates equal a loop over the whole score matrix; overfitting gives a warning."""

from __future__ import annotations

import math

import pytest
import torch
from gloo import run_ranks
from test_loop import events
from tiny_runs import own_group, tiny_config, tiny_run, tiny_splits, tiny_state

from raymi.collectives import Collectives
from raymi.engine.block_metrics import FGSMAccuracy, MIEstimates
from raymi.engine.health_checks import overfits_catastrophically
from raymi.engine.pgd_evaluation import PGDAttack, evaluate_pgd
from raymi.mi.bounds import donsker_varadhan
from raymi.mi.objectives import selected

ATTACK = PGDAttack("linf", 0.2, 0.05, 5)
BLOCK = 20
KINDS = [
    f"{kind}_of_{of}" for kind in ("natural", "adversarial") for of in ("natural", "adversarial")
]


class Recorder:
    """Keeps what observers are shown."""

    def __init__(self):
        self.blocks = []

    def update(self, block):
        self.blocks.append(block[:5])

    def compute(self):
        return {}


def trained():
    """Classifier and estimators after an epoch in this process alone."""
    state, loader = tiny_state(tiny_config({"attack.eps": 0.1, "optim.epochs": 4}), Collectives())
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            state.step(batch)
    return state


def observed(rank, world_size, num_images=50):
    state, recorder = trained(), Recorder()
    images = tiny_splits(state.config).train.subset(range(num_images))
    group = own_group()
    metrics = [
        recorder,
        MIEstimates(state.estimators, state.config.mi, group, BLOCK),
        FGSMAccuracy(state.model, ATTACK.eps, ATTACK.norm, group, torch.device("cpu")),
    ]
    evaluate_pgd(state.model, images, ATTACK, group, block=BLOCK, metrics=metrics)
    return {**metrics[1].compute(), **metrics[2].compute()}, recorder.blocks


@pytest.fixture(scope="module")
def alone():
    return observed(0, 1)


def expected_mi(blocks):
    state = trained()
    state.estimators.eval()
    sums = dict.fromkeys(KINDS, 0.0) | dict.fromkeys([f"{k}_selected" for k in KINDS], 0.0)
    num = num_selected = 0
    with torch.no_grad():
        for x, x_adv, z, z_adv, y in blocks:
            if len(x) < BLOCK:
                continue
            mask = selected(z, z_adv, y)
            num, num_selected = num + len(x), num_selected + int(mask.sum())
            for kind, estimator, u in (
                ("natural", state.estimators.natural, x),
                ("adversarial", state.estimators.adversarial, x_adv - x),
            ):
                features = estimator.local_features(u)
                for of, logits in (("natural", z), ("adversarial", z_adv)):
                    outputs = estimator.global_features(logits)
                    scores = torch.einsum("ih,jhp->ijp", outputs, features)
                    nats = donsker_varadhan(scores)
                    sums[f"{kind}_of_{of}"] += nats.sum().item()
                    sums[f"{kind}_of_{of}_selected"] += nats[mask].sum().item()
    assert 0 < num_selected < num
    return {
        f"mi/{k}": v / (num_selected if k.endswith("selected") else num) for k, v in sums.items()
    }


def test_mi_of_both_outputs_over_all_and_selected_samples(alone):
    results, blocks = alone
    assert [len(block[0]) for block in blocks] == [20, 20, 10]  # the last one does not count
    for name, value in expected_mi(blocks).items():
        assert results[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_a_set_smaller_than_a_block_is_measured_as_it_is():
    results, _ = observed(0, 1, num_images=12)
    assert results["mi/natural_of_natural"] <= math.log(12) + 10
    assert len([k for k in results if k.startswith("mi/")]) in (4, 8)


def test_workers_together_compute_the_metrics_of_one_process(alone, tmp_path):
    """Closely on natural images; rounding in a smaller share turns a sign of PGD here and there."""
    for results, _ in run_ranks(observed, 3, tmp_path=tmp_path):
        assert results == pytest.approx(alone[0], rel=0.02, abs=2e-3)
        exact = "mi/natural_of_natural"
        assert results[exact] == pytest.approx(alone[0][exact], rel=1e-4, abs=1e-5)


def test_fgsm_is_one_step_from_the_image(alone):
    results, blocks = alone
    model = trained().model.eval()
    right = 0
    for x, _, z, _, y in blocks:
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y), x)
        x_fgsm = (x + ATTACK.eps * grad.sign()).clamp(0, 1).detach()
        right += int(((z.argmax(1) == y) & (model(x_fgsm).argmax(1) == y)).sum())
    assert results["fgsm_acc"] == right / 50


def test_each_epoch_of_a_run_records_the_mi_of_the_validation_split(tmp_path):
    tiny_run(0, 1, tmp_path, {"optim.epochs": 1}, [])
    (epoch,) = events(tmp_path, "epoch")
    assert {f"mi/{kind}" for kind in KINDS} <= epoch["val"].keys()
    assert epoch["val"]["robust_acc"] <= epoch["val"]["clean_acc"]
    assert "fgsm_acc" in epoch["val"]


@pytest.mark.parametrize(
    ("cheap", "strong", "num", "expected"),
    [
        (0.95, 0.0, 200, True), (0.6, 0.25, 200, True), (0.58, 0.5, 200, False),
        (0.12, 0.03, 200, False), (0, 0, 200, False), (0.75, 0.25, 4, False), (0.5, 0, 4, False),
        (1.0, 0.0, 4, True),
    ],
)  # fmt: skip
def test_overfitting_is_a_strong_attack_that_leaves_less_than_half(cheap, strong, num, expected):
    assert overfits_catastrophically(cheap, strong, num) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "epochs", "expected"),
    [(1, 8, True), pytest.param(7, 4, False, marks=pytest.mark.exhaustive)],
)
def test_training_against_one_long_step_overfits(steps, epochs, expected, tmp_path):
    settings = {
        "data.limit": 1000, "mi.weight": 0, "model.width": 1, "model.depth": 7,
        "attack.eps": 0.3, "attack.alpha": 0.3 if steps == 1 else 0.075, "attack.steps": steps,
        "attack.start": "image", "optim.epochs": epochs, "optim.lr": 0.1, "optim.weight_decay": 0,
        "validation.steps": 10, "data.crop_padding": 0,
    }  # fmt: skip
    tiny_run(0, 1, tmp_path, settings, [])
    messages = [e["message"] for e in events(tmp_path, "warning")]
    assert any("catastrophic overfitting" in message for message in messages) == expected
