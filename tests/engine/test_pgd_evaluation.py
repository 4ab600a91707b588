"""Clean and PGD accuracy equal a naive loop, on one worker and on several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gloo import run_ranks
from tiny_runs import own_group, tiny_config, tiny_splits, tiny_state

from raymi.attacks.pgd import pgd
from raymi.attacks.projections import random_start
from raymi.collectives import Collectives
from raymi.counter_rng import random_key
from raymi.engine.pgd_evaluation import Accuracy, PGDAttack, evaluate_pgd

ATTACKS = [PGDAttack("linf", 0.1, 0.04, 5), PGDAttack("l2", 0.8, 0.3, 5, seed=3)]


def learned():
    """A classifier after two epochs in this process alone, and its test images."""
    config = tiny_config({"attack.eps": 0.05, "mi.weight": 0, "optim.batch_size": 20})
    state, loader = tiny_state(config, Collectives())
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            state.step(batch)
    return state.model, tiny_splits(config).test.subset(range(61))


def naive_accuracy(model, images, attack):
    """Evaluates image by image."""
    clean = robust = 0
    key = random_key(attack.seed, "evaluate", attack.norm, attack.steps)
    model.eval()
    for i in range(len(images)):
        index = torch.tensor([i])
        x, y = images.images[index].float() / 255, images.labels[index]
        start = random_start(x, attack.eps, attack.norm, key, index)
        settings = {
            "eps": attack.eps,
            "alpha": attack.alpha,
            "steps": attack.steps,
            "norm": attack.norm,
        }
        x_adv = pgd(model, x, y, **settings, start=start)
        right = [model(v).argmax(1).item() == y.item() for v in (x, x_adv)]
        clean += right[0]
        robust += right[0] and right[1]
    return Accuracy(clean / len(images), robust / len(images), len(images))


def accuracies_on_a_rank(rank, world_size):
    model, images = learned()
    seen = []
    results = [
        evaluate_pgd(
            model, images, attack, own_group(), block=13,
            heartbeat=lambda done, total: seen.append((done, total)),
        )
        for attack in ATTACKS
    ]  # fmt: skip
    return results, seen


@pytest.fixture(scope="module")
def one_process():
    return accuracies_on_a_rank(0, 1)


def test_accuracies_equal_a_loop_over_images(one_process):
    model, images = learned()
    expected = [naive_accuracy(model, images, attack) for attack in ATTACKS]
    assert one_process[0] == expected
    for accuracy in expected:
        assert 0.1 < accuracy.robust < accuracy.clean < 1  # neither attack is trivial


def test_workers_together_equal_one_process(one_process, tmp_path):
    for results, _ in run_ranks(accuracies_on_a_rank, 2, tmp_path=tmp_path):
        assert results == one_process[0]


def test_the_heartbeat_counts_images(one_process):
    done = [13, 26, 39, 52, 61]
    assert one_process[1] == [(n, 61) for n in done] * 2


def test_the_classifier_stays_unchanged():
    model, images = learned()
    model.train()
    model.net.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    evaluate_pgd(model, images, ATTACKS[0], own_group())
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert torch.equal(random_state, torch.get_rng_state())


class RightOffTheGrid(torch.nn.Module):
    """Class 0 for images of whole 255ths, class 1 for all others."""

    def forward(self, x):
        off = ((255 * x - (255 * x).round()).abs() > 1e-3).flatten(1).any(1)
        return torch.stack([~off, off], dim=1) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_a_sample_that_only_the_attack_corrects_is_not_robust():
    images = tiny_splits(tiny_config()).test.subset(range(8))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    accuracy = evaluate_pgd(
        RightOffTheGrid(), replace(images, labels=labels), ATTACKS[0], own_group()
    )
    assert accuracy == Accuracy(clean=3 / 8, robust=0.0, num=8)
