"""Probes: a fixed budget on a frozen classifier, the same for every run and number of workers."""

from __future__ import annotations

import math

import pytest
import torch
from gloo import run_ranks
from test_loop import events
from tiny_runs import own_group, same, tiny_config, tiny_run, tiny_splits, tiny_state

from raymi.collectives import Collectives
from raymi.config import ProbeConfig
from raymi.engine.pgd_evaluation import PGDAttack
from raymi.engine.probes import probe_classifier

ATTACK = PGDAttack("linf", 0.1, 0.05, 3)


def classifier(epochs):
    state, loader = tiny_state(
        tiny_config({"mi.weight": 0, "attack.eps": 0.1, "optim.epochs": 6}), Collectives()
    )
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            state.step(batch)
    return state.model


def probed(rank, world_size, epochs=6, steps=30):
    model = classifier(epochs)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    splits = tiny_splits(tiny_config())
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    done = []
    estimates = probe_classifier(
        model, splits.train, splits.test, ATTACK, ProbeConfig(steps=steps, batch=60, units=32),
        own_group(), heartbeat=lambda *at: done.append(at),
    )  # fmt: skip
    assert same(before, dict(model.state_dict()))
    assert model.training
    assert torch.equal(random_state, torch.get_rng_state())
    total = len(splits.train) + len(splits.test) + 8 * steps
    assert done[-1] == (total, total)
    return estimates


@pytest.fixture(scope="module")
def alone():
    return probed(0, 1)


def test_a_probe_estimates_the_mi_of_outputs(alone):
    """A trained classifier's outputs depend on the image, shuffled ones do not."""
    assert 0.3 < alone["mi/natural_of_natural"] < math.log(2 * 60)
    assert alone["mi/natural_of_natural_shuffled"] < 0.1
    assert alone["mi/natural_of_natural"] > alone["mi/adversarial_of_natural"]


def test_a_constant_classifier_has_no_mi():
    model = classifier(0)
    with torch.no_grad():
        for p in list(model.parameters())[-2:]:
            p.zero_()
    splits = tiny_splits(tiny_config())
    estimates = probe_classifier(
        model, splits.train, splits.test, ATTACK, ProbeConfig(steps=30, batch=60, units=32),
        Collectives(),
    )  # fmt: skip
    assert estimates["mi/natural_of_natural"] == pytest.approx(0, abs=0.05)


def test_it_depends_on_the_classifier_alone(alone):
    assert probed(0, 1) == alone


def test_workers_together_probe_as_one_process(tmp_path):
    """After a few steps: rounding grows with the number of Adam's."""
    (alone,) = run_ranks(probed, 1, 6, 3, tmp_path=tmp_path)
    for estimates in run_ranks(probed, 2, 6, 3, tmp_path=tmp_path):
        assert estimates == pytest.approx(alone, abs=1e-3)


def test_a_run_ends_with_its_probes(tmp_path):
    settings = {"optim.epochs": 1, "probe.steps": 3, "probe.batch": 30, "mi.weight": 0}
    tiny_run(0, 1, tmp_path, settings, [])
    (probe,) = events(tmp_path, "probe")
    assert probe["which"] == "best"
    assert "mi/adversarial_of_adversarial" in probe["estimates"]


def test_a_stop_takes_effect_during_a_probe(tmp_path):
    settings = {"optim.epochs": 1, "probe.steps": 8, "probe.batch": 30}
    tiny_run(0, 1, tmp_path, settings, [5 + 1 + 2 + 4])  # steps, validation, evaluations, probe
    assert [e["kind"] for e in events(tmp_path, "stopped")] == ["stopped"]
    assert len(events(tmp_path, "probe")) == 1
