"""An evaluation asked for by a program: watched or not, and within a Ray that is there already."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from raymi.commands.evaluate.plan import planned
from raymi.commands.evaluate.run import NoCallback, evaluate
from raymi.config import ScalingConfig
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
    (tmp_path / "watched_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def plan(results: Path, *words: str):
    return planned(["model=watched_nets:linear", *WORDS, f"results={results}", *words])


def numbers(reports: list[Report]):
    return [(result.name, result.right, result.num) for result in reports[0].results]


class Counting(NoCallback):
    def __init__(self):
        self.calls, self.known = Counter(), 0

    def finding(self, finding):
        self.calls["finding"] += 1

    def attack_with(self, workers):
        self.calls["attack_with"] += 1

    def begin(self, name, schedule, main):
        self.calls["begin"] += 1
        self.total = sum(schedule.steps_by_attack().values())

    def step(self, step, outcome, known):
        self.calls["step"] += 1
        self.known += known

    def end(self):
        self.calls["end"] += 1


def test_a_watcher_hears_of_each_step_finding_and_turn_once(tmp_path):
    callback = Counting()
    (report,), matrices = evaluate(plan(tmp_path, "workers=1"), callback)
    assert matrices == []
    assert callback.calls["step"] == callback.total
    assert callback.calls["finding"] == len(report.findings)
    assert [callback.calls[name] for name in ("attack_with", "begin", "end")] == [1, 1, 1]
    assert (report.folder / "report.json").is_file()
    again = Counting()
    evaluate(plan(tmp_path, "workers=1"), again)
    assert again.known == again.calls["step"] == callback.calls["step"]


def test_nobody_needs_to_watch(tmp_path):
    words = ("surrogate=watched_nets:other", "workers=1")
    reports, (matrix,) = evaluate(plan(tmp_path, *words), NoCallback())
    assert matrix.targets == tuple(report.name for report in reports)
    assert matrix.surrogates.keys() == {"watched_nets-other"}


@pytest.mark.slow
@pytest.mark.ray
def test_an_evaluation_within_a_session_leaves_it_open_and_has_the_same_numbers(
    tmp_path, ray_head, monkeypatch
):
    import ray

    alone, _ = evaluate(plan(tmp_path / "alone", "workers=1"), NoCallback())
    ray_head.join(monkeypatch)
    asked = plan(tmp_path / "shared", "workers=1..2", "use_gpu=false")
    with ray_session(ScalingConfig(workers=2, use_gpu="false")) as resources:
        node = ray.get_runtime_context().get_node_id()
        callback = Counting()
        within, _ = evaluate(asked, callback, resources)
        assert ray.get_runtime_context().get_node_id() == node
        ray_head.wait_until_idle()
    assert callback.known == 0
    assert numbers(within) == numbers(alone)
