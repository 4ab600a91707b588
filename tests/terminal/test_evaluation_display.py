"""Display of attacks: progress, time left, broken samples."""

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


def test_line_is_printed_literally_on_one_line(console):
    text = "a [bold]path[/] that is longer than the terminal is wide/file.json"
    print_line(console, text, "bold")
    assert console.file.getvalue() == text + "\n"


def test_attack_shows_its_time_left_and_ends_with_a_line(console):
    with EvaluationDisplay(console) as display:
        display.attack_with(2)
        display.begin("net", Schedule(40, 10, MAIN), MAIN)
        clean, pgd = display.bar.tasks
        display.step(Step(CLEAN, 0, CLEAN, 0), outcome(10, 1, 0.0), known=True)
        assert clean.fields["detail"] == "1 of 10 misclassified", "the ledger's took no time"
        for block, seconds in enumerate((100.0, 300.0)):
            display.step(Step("pgd-3", 0, "pgd-3", block), outcome(10, 4, seconds), known=False)
        assert pgd.fields["detail"] == "8 of 20 broken · 0:03:20 left", "2 blocks of 200 s by 2"
        display.step(Step("pgd-3", 0, "pgd-3", 2), outcome(10, 0, 900.0), known=True)
        assert pgd.fields["detail"] == "8 of 30 broken · 0:01:40 left"
        display.step(Step("pgd-3", 0, "pgd-3", 3), outcome(10, 2, 50.0), known=False)
    (line,) = console.file.getvalue().splitlines()
    assert line == ("net · pgd-3: 10 of 40 broken, 450 s of work, 1 of 4 blocks from the ledger")
