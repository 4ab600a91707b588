"""The headline states the table's means, and differences to AT that are paired by seed."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from raymi.reporting.accuracies import ProtocolAccuracies
from raymi.reporting.headline import headline
from raymi.reporting.style import percent_axis
from raymi.reporting.table import RunAccuracies, comparison_tables
from raymi.selection.candidate import Protocol
from raymi.statistics import with_interval

PROTOCOL = Protocol("cifar10-test", "0" * 32, 1000, "linf_8_255", False)


def run(method, seed, clean, robust, attack="autoattack"):
    values = {"clean": clean, "pgd-40": robust + 0.03, attack: robust}
    numbers = {name: with_interval(value, 1000) for name, value in values.items()}
    name = f"{method}-{seed}"
    return RunAccuracies(name, method, seed, [ProtocolAccuracies(PROTOCOL, numbers)])


def test_the_most_robust_method_is_first_with_its_paired_difference():
    runs = [
        run("AT", 0, 0.82, 0.49),
        run("AT", 1, 0.82, 0.51),
        run("NAMID (bounded)", 0, 0.81, 0.492),
        run("NAMID (bounded)", 1, 0.83, 0.516),
    ]
    assert headline(comparison_tables(runs)) == [
        "NAMID (bounded) on cifar10-test: 82.0 ± 1.0% clean, 50.4 ± 1.2% AutoAttack, "
        "+0.4 ± 0.2 points over AT",
        "AT on cifar10-test: 82.0 ± 0.0% clean, 50.0 ± 1.0% AutoAttack",
    ]


def test_a_difference_of_one_seed_has_no_error():
    first, second = headline(
        comparison_tables([run("AT", 0, 0.8, 0.5), run("TRADES", 0, 0.8, 0.48)])
    )
    assert first.startswith("AT on")
    assert second.endswith("48.0% AutoAttack, -2.0 points over AT (one seed)")


def test_runs_of_different_seeds_have_no_difference():
    lines = headline(comparison_tables([run("AT", 0, 0.8, 0.5), run("MART", 1, 0.8, 0.48)]))
    assert not any("over AT" in line for line in lines)


def test_the_strongest_attack_counts_without_autoattack():
    (line,) = headline(comparison_tables([run("AT", 0, 0.8, 0.5, attack="fwa-40")]))
    assert line.endswith("50.0% FWA-40")


def test_a_report_without_accuracies_has_no_headline():
    assert headline([]) == []


@pytest.mark.parametrize("values", [(0.7266, 0.7267), (0.5, 0.5), (0.1, 0.9)])
def test_axes_of_percent_have_one_decimal_at_most(values):
    axes = Figure().subplots()
    axes.plot([1, 2], values)
    percent_axis(axes.yaxis)
    axes.figure.canvas.draw()
    texts = [label.get_text().removesuffix("%") for label in axes.get_yticklabels()]
    assert len(set(texts)) == len(texts) > 2
    assert all(len(text.partition(".")[2]) <= 1 for text in texts)
