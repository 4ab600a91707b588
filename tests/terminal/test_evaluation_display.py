"""Display of running attacks: progress, time left, broken images."""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import ensembles_of
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.terminal.evaluation import EvaluationDisplay
from raymi.terminal.print_line import print_line

MAIN = ensembles_of(["pgd-3"], Threat("linf", 0.1), 5)


def outcome(num: int, broken: int, seconds: float) -> Outcome:
    ids, zeros = torch.arange(num), torch.zeros(num)
    return Outcome(ids, ids, ids, ids, ids < broken, ids >= 0, zeros, zeros, seconds)


@pytest.fixture
def console():
    return Console(file=StringIO(), width=30, highlight=False)


def test_markup_and_long_paths_print_as_one_line(console):
    text = "a [bold]path[/] that is longer than the terminal is wide/file.json"
    print_line(console, text, "bold")
    assert console.file.getvalue() == text + "\n"


def test_an_attack_shows_the_time_left_and_ends_with_a_line(console):
    with EvaluationDisplay(console) as display:
        display.on_workers(2)
        display.on_model("net", Schedule(40, 10, MAIN), MAIN)
        clean, pgd = display.bar.tasks
        display.on_step(Step(CLEAN, 0, CLEAN, 0), outcome(10, 1, 0.0), cached=True)
        assert clean.fields["detail"] == "1 of 10 misclassified", "cached steps take no time"
        for block, seconds in enumerate((100.0, 300.0)):
            display.on_step(Step("pgd-3", 0, "pgd-3", block), outcome(10, 4, seconds), cached=False)
        assert pgd.fields["detail"] == "8 of 20 broken · 0:03:20 left", "2 blocks of 200 s by 2"
        display.on_step(Step("pgd-3", 0, "pgd-3", 2), outcome(10, 0, 900.0), cached=True)
        assert pgd.fields["detail"] == "8 of 30 broken · 0:01:40 left"
        display.on_step(Step("pgd-3", 0, "pgd-3", 3), outcome(10, 2, 50.0), cached=False)
    (line,) = console.file.getvalue().splitlines()
    assert line == ("net · pgd-3: 10 of 40 broken, 450 s of work, 1 of 4 blocks from disk")
