"""Metric means are weighted by samples, over steps and workers, and survive a checkpoint."""

from __future__ import annotations

import pytest
import torch
from gloo import run_ranks

from raymi.collectives import Collectives, ProcessGroup
from raymi.engine.metrics import MetricMeans


def metrics(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_means_are_weighted_by_samples_and_by_the_steps_that_had_the_metric():
    means = MetricMeans()
    means.add(metrics(loss=1.0, mi=4.0), 3)
    means.add(metrics(loss=5.0), 1)
    assert means.means(Collectives()) == {"loss": 2.0, "mi": 4.0}
    means.clear()
    assert means.means(Collectives()) == {}


def test_means_have_double_precision():
    means = MetricMeans()
    for _ in range(1000):
        means.add(metrics(loss=0.1), 1_000_000)
    assert means.means(Collectives())["loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_values_that_are_not_finite_stay_so():
    means = MetricMeans()
    means.add(metrics(loss=float("nan")), 1)
    means.add(metrics(loss=1.0), 1)
    assert means.means(Collectives())["loss"] != means.means(Collectives())["loss"]


def means_on_a_rank(rank, world_size):
    group, means = ProcessGroup(), MetricMeans()
    means.add(metrics(loss=float(rank)), 10)  # the mean over workers is 1
    before = means.state(group)
    continued = MetricMeans()
    continued.load_state(before, torch.device("cpu"))
    continued.add(metrics(loss=4.0 + 3 * (rank - 1)), 20)  # the mean over workers is 4
    return before, continued.means(group)


def test_means_are_over_workers_and_continue_from_a_checkpoint(tmp_path):
    for before, after in run_ranks(means_on_a_rank, 3, tmp_path=tmp_path):
        assert before == [{"names": ["loss"], "sums": [10.0], "weight": 10}]
        assert after == pytest.approx({"loss": 3.0})
