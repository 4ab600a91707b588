"""The study of a GPU runs on a CPU at a small size, and shows where a device differs."""

from __future__ import annotations

import json

import pytest
import torch

from studies.gpu import parity, speed
from studies.gpu.command import main
from studies.gpu.naive import naive_step

CPU = torch.device("cpu")


@pytest.mark.slow
def test_parts_are_measured_and_written(tmp_path, monkeypatch, capsys):
    chosen = {name: parity.METHODS[name] for name in ("bounded", "teacher")}
    monkeypatch.setattr(parity, "METHODS", chosen)
    monkeypatch.setattr(speed, "OPTIONS", {"fp32": {}})
    out = tmp_path / "gpu.json"
    parts = "parts=parity,training,syncs,phases,attacks,batches"
    assert main([str(out), "small=true", "rounds=1", parts]) == 0, capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["parity"]["beyond"] == []
    assert found["parity"]["differences"]["bounded"]["float64"]["change"] == 0
    assert 0 < found["parity"]["differences"]["bounded"]["channels_last"]["change"] < 0.02
    assert set(found["training"]["seconds_per_step"]) == {
        "plain script, fp32", "AT, fp32", "NAMID, fp32",
    }  # fmt: skip
    assert "| teacher |" in out.with_suffix(".md").read_text()


def test_another_step_is_beyond_the_limit_of_parity():
    plain = parity.config_of({"mi.weight": 0.0}, small=True)
    other = parity.config_of({"mi.weight": 0.0, "optim.lr": 0.11}, small=True)
    expected = parity.step_of(plain, CPU)
    assert parity.compare(plain, expected, CPU, torch.float32).change == 0
    assert parity.compare(other, expected, CPU, torch.float32).change > parity.LIMITS["fp32"]


def test_the_plain_script_attacks_and_learns():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    sgd = torch.optim.SGD(model.parameters(), 0.5)
    x, y = torch.rand(12, 3, 4, 4), torch.arange(12) % 3
    losses = [naive_step(model, sgd, x, y, eps=0.05, alpha=0.02, steps=3).item() for _ in range(30)]
    assert losses[-1] < losses[0]


def test_wrong_words_are_one_message(capsys):
    assert main(["parts=paritty", "small=true"]) == 2
    assert "did you mean parity" in capsys.readouterr().err
