"""Evaluations from Python, with and without a callback, and in an open Ray session."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from raymi.commands.evaluate.options import requested
from raymi.commands.evaluate.plan import plan_evaluation
from raymi.commands.evaluate.run import evaluate
from raymi.config import ScalingConfig
from raymi.evaluation.callback import EvaluationCallback
from raymi.evaluation.report import Report
from raymi.ray_backend.session import ray_session

WORDS = (
    "data.name=digits", "eps=0.1", "samples=40", "block=16", "checks=20",
    "tracking.enabled=false", "attacks=pgd-3",
)  # fmt: skip


NETS = """
import torch
from torch import nn

def net(seed, num_classes, image_size):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))

def linear(num_classes, image_size):
    return net(0, num_classes, image_size)

def other(num_classes, image_size):
    return net(1, num_classes, image_size)
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The working directory, with the networks of a user."""
    (tmp_path / "callback_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def plan(results: Path, *words: str):
    line = ["model=callback_nets:linear", *WORDS, f"results={results}", *words]
    return plan_evaluation(requested(line))


def numbers(reports: list[Report]):
    return [(result.name, result.right, result.num) for result in reports[0].results]


class Counting(EvaluationCallback):
    def __init__(self):
        self.calls, self.cached = Counter(), 0

    def on_finding(self, finding):
        self.calls["finding"] += 1

    def on_workers(self, num_workers):
        self.calls["workers"] += 1

    def on_model(self, name, schedule, main):
        self.calls["model"] += 1
        self.total = sum(schedule.steps_by_attack().values())

    def on_step(self, step, outcome, cached):
        self.calls["step"] += 1
        self.cached += cached

    def on_end(self):
        self.calls["end"] += 1


def test_a_callback_receives_each_event_once(tmp_path):
    callback = Counting()
    (report,), matrices = evaluate(plan(tmp_path, "workers=1"), callback)
    assert matrices == []
    assert callback.calls["step"] == callback.total
    assert callback.calls["finding"] == len(report.findings)
    assert [callback.calls[name] for name in ("workers", "model", "end")] == [1, 1, 1]
    assert (report.folder / "report.json").is_file()
    second = Counting()
    evaluate(plan(tmp_path, "workers=1"), second)
    assert second.cached == second.calls["step"] == callback.calls["step"]


def test_a_callback_may_ignore_all_events(tmp_path):
    words = ("surrogate=callback_nets:other", "workers=1")
    reports, (matrix,) = evaluate(plan(tmp_path, *words), EvaluationCallback())
    assert matrix.targets == tuple(report.name for report in reports)
    assert matrix.surrogates.keys() == {"callback_nets-other"}


@pytest.mark.slow
@pytest.mark.ray
def test_an_evaluation_in_an_open_session_has_the_same_numbers(tmp_path, ray_head, monkeypatch):
    import ray

    alone, _ = evaluate(plan(tmp_path / "alone", "workers=1"), EvaluationCallback())
    ray_head.join(monkeypatch)
    shared = plan(tmp_path / "shared", "workers=1..2", "use_gpu=false")
    with ray_session(ScalingConfig(workers=2, use_gpu="false")) as resources:
        node = ray.get_runtime_context().get_node_id()
        callback = Counting()
        within, _ = evaluate(shared, callback, resources)
        assert ray.get_runtime_context().get_node_id() == node
        ray_head.wait_until_idle()
    assert callback.cached == 0
    assert numbers(within) == numbers(alone)
