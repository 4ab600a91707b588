"""Intervals, means, paired tests, and accuracies from outcomes."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import Ensemble, ensembles_of
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.evaluation.summary import mean_results, summarise
from raymi.statistics import Mean, compare_paired, mean_of, wilson_interval


@pytest.mark.parametrize(
    ("right", "num", "low", "high"),
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_intervals_equal_known_values(right, num, low, high):
    assert wilson_interval(right, num) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_narrows_with_the_number_of_images():
    (low, high), (lower, higher) = wilson_interval(600, 1000), wilson_interval(60, 100)
    assert lower < low < 0.6 < high < higher


def test_a_mean_has_the_standard_error_of_the_sample():
    mean = mean_of([0.1, 0.2, 0.6])
    assert mean.mean == pytest.approx(0.3)
    assert mean.error == pytest.approx(sqrt(0.07 / 3)), "deviations -0.2, -0.1, 0.3"
    assert mean_of([0.25]) == Mean(0.25, None, 1)
    assert mean_of([]) is None


def paired(both, first, second, neither):
    """Returns outcomes of two models; numbers of samples that both, one, or none classify."""
    counts = torch.tensor([both, first, second, neither])
    return (
        torch.tensor([True, True, False, False]).repeat_interleave(counts),
        torch.tensor([True, False, True, False]).repeat_interleave(counts),
    )


def test_mcnemar_uses_the_samples_on_which_models_differ():
    found = compare_paired(*paired(50, 15, 5, 30))
    assert (found.only_first, found.only_second) == (15, 5)
    assert found.difference == pytest.approx(0.1)
    assert found.p_value == pytest.approx(0.041389, abs=1e-6)  # 2 * P(X <= 5), X ~ Bin(20, 1/2)
    assert compare_paired(*paired(5000, 15, 5, 0)).p_value == found.p_value
    assert compare_paired(*paired(3, 0, 0, 4)).p_value == 1.0
    with pytest.raises(ValueError, match="got 3 and 2"):
        compare_paired(torch.ones(3).bool(), torch.ones(2).bool())


def outcome(broken, seconds=1.0):
    num = len(broken)
    zeros = torch.zeros(num)
    return Outcome(
        torch.arange(num), torch.arange(num), zeros.long(), zeros.long(),
        torch.tensor(broken, dtype=torch.bool),
        torch.arange(num) != 1, zeros, zeros, seconds,
    )  # fmt: skip


def test_accuracies_count_all_blocks_and_all_attacks():
    ensembles = ensembles_of(["pgd-5", "autoattack-rand"], Threat("linf", 0.1), 10)
    ce, dlr = "apgd-ce-rand", "apgd-dlr-rand"
    made = [
        (Step(CLEAN, 0, CLEAN, 0), outcome([0, 0, 1, 0])),
        (Step(CLEAN, 0, CLEAN, 1), outcome([0, 0])),
        (Step("pgd-5", 0, "pgd-5", 0), outcome([1, 0, 0])),
        (Step("pgd-5", 0, "pgd-5", 1), outcome([0, 1])),
        (Step("autoattack-rand", 0, ce, 0), outcome([1, 1, 0], 2.0)),
        (Step("autoattack-rand", 0, ce, 1), outcome([0, 1])),
        (Step("autoattack-rand", 1, dlr, 0), outcome([1])),
        (Step("autoattack-rand", 1, dlr, 1), outcome([0])),
    ]
    clean, pgd, auto = summarise(made, ensembles)
    assert [(r.name, r.right, r.num) for r in (clean, pgd, auto)] == [
        ("clean", 5, 6), ("pgd-5", 3, 6), ("autoattack-rand", 1, 6),
    ]  # fmt: skip
    assert [(a.attack, a.given, a.broken, a.seconds) for a in auto.attacks] == [
        (ce, 5, 3, 3.0), (dlr, 2, 1, 2.0),
    ]  # fmt: skip
    assert [attack.unusable for attack in auto.attacks] == [2, 0]
    assert pgd.accuracy == 0.5
    assert pgd.interval == wilson_interval(3, 6)
    with pytest.raises(ValueError, match="apgd-dlr-rand was made on 1 of 2 blocks"):
        summarise(made[:-1], ensembles)


def test_means_over_ensembles_have_the_interval_of_their_images():
    masks = {"a-1": [1, 1, 0, 0], "a-2": [1, 0, 0, 0], "b-1": [1, 1, 1, 0], "other": [0, 0, 0, 0]}
    robust = {name: torch.tensor(mask, dtype=torch.bool) for name, mask in masks.items()}
    means = {"a-1": ("a", "all"), "a-2": ("a", "all"), "b-1": ("all",)}
    ensembles = [Ensemble(name, (), means=means.get(name, ())) for name in masks]
    a, whole = mean_results(ensembles, robust)
    assert (a.name, a.right, a.num, a.accuracy) == ("a", 3, 8, 0.375)
    assert (whole.name, whole.right, whole.num) == ("all", 6, 12)
    shares = [1, 0.5, 0, 0]  # of each image
    error = sqrt(sum((share - 0.375) ** 2 for share in shares) / 3 / 4)
    assert a.interval == pytest.approx((0.0, 0.375 + 1.96 * error)), "cut at 0"
    assert whole.interval == pytest.approx((0.0783, 0.9217), abs=1e-4)
    assert a.note == ""
    assert whole.note == "all: mean error 50.0% over 3 sets of images"
