"""Rankings, constraints and protocols, without MLflow."""

from __future__ import annotations

from typing import Any

import pytest

from raymi.commands.select.options import requested
from raymi.errors import UserError
from raymi.selection.candidate import Candidate, Protocol
from raymi.selection.constraints import Constraint, is_constraint, read_constraints
from raymi.selection.protocols import by_protocol, check_names, strongest
from raymi.selection.ranking import rank
from raymi.statistics import PairedComparison, with_interval

DIGITS = Protocol("digits-test", "d" * 32, 1000, "linf_8_255", False)


def model(name: str, protocol: Protocol = DIGITS, doubts: str = "", **values: float) -> Candidate:
    """A candidate; `pgd_40=0.5` is its accuracy under `pgd-40`."""
    numbers = {k.replace("_", "-"): with_interval(v, protocol.num) for k, v in values.items()}
    return Candidate(name, f"m-{name}", f"run-{name}", protocol, numbers, doubts)


A = model("a", clean=0.90, pgd_40=0.50)
B = model("b", clean=0.80, pgd_40=0.60)
C = model("c", clean=0.85, pgd_40=0.30)
D = model("d", clean=0.85, pgd_40=0.60)


def order(ranking: Any) -> list[str]:
    return [place.candidate.name for place in ranking.ranked]


def test_ranking_is_by_robust_then_clean_accuracy_then_name() -> None:
    assert order(rank([A, B, C, D], "pgd-40")) == ["d", "b", "a", "c"]
    same = [model(name, clean=0.5, pgd_40=0.5) for name in "zxy"]
    assert order(rank(same, "pgd-40")) == ["x", "y", "z"]


def test_the_pareto_front_has_the_undominated_models() -> None:
    ranking = rank([A, B, C, D], "pgd-40")
    assert [p.candidate.name for p in ranking.ranked if p.on_front] == ["d", "a"]
    twins = [model(name, clean=0.5, pgd_40=0.5) for name in "xy"]
    assert all(place.on_front for place in rank(twins, "pgd-40").ranked)


def test_a_model_that_violates_a_constraint_is_last_with_the_reason() -> None:
    ranking = rank([A, B, C, D], "pgd-40", [Constraint("clean", ">=", 0.86)])
    assert ranking.chosen is A
    assert order(ranking) == ["a", "d", "b", "c"]
    assert ranking.ranked[1].excluded == "not clean>=0.86"
    assert [place.on_front for place in ranking.ranked] == [True, False, False, False]


def test_a_constraint_holds_at_its_bound_but_not_without_a_measurement() -> None:
    numbers = model("x", clean=1 - 0.2, pgd_40=0.1 + 0.2).numbers
    assert Constraint("clean", ">=", 0.8).violation(numbers) == ""
    assert Constraint("pgd-40", "<=", 0.3).violation(numbers) == ""
    assert Constraint("clean", ">", 0.8).violation(numbers) == "not clean>0.8"
    assert Constraint("pgd-40", "<", 0.25).violation(numbers) == "not pgd-40<0.25"
    assert Constraint("square", ">=", 0.0).violation(numbers) == "no square"


def test_doubtful_models_are_not_chosen_unless_allowed() -> None:
    masked = model("m", doubts="steps", clean=0.9, pgd_40=0.9)
    assert rank([A, masked], "pgd-40").chosen is A
    assert rank([A, masked], "pgd-40").ranked[1].excluded == "doubtful"
    assert rank([A, masked], "pgd-40", allow_doubtful=True).chosen is masked
    with pytest.raises(UserError, match="doubtful=allow"):
        _ = rank([masked], "pgd-40").chosen


def test_without_an_eligible_model_the_error_has_the_best_values() -> None:
    ranking = rank([A, B], "pgd-40", [Constraint("clean", ">=", 0.95)])
    with pytest.raises(UserError) as raised:
        _ = ranking.chosen
    assert "none of 2 models satisfies clean>=0.95" in str(raised.value)
    assert "clean 0.9000 (a), pgd-40 0.6000 (b)" in str(raised.value)


def test_overlapping_intervals_are_noise_unless_a_paired_test_is_significant() -> None:
    near = model("near", clean=0.9, pgd_40=0.58)
    of = {p.candidate.name: p.difference for p in rank([B, near, C], "pgd-40").ranked}
    assert of["b"] is None
    assert of["near"] is not None
    assert of["c"] is not None
    assert (of["near"].within_noise, of["near"].p_value) == (True, None)
    assert of["near"].value == pytest.approx(-0.02)
    assert (of["c"].within_noise, of["c"].p_value) == (False, None)
    asked = []

    def paired(one: Candidate, other: Candidate) -> PairedComparison:
        asked.append((one.name, other.name))
        return PairedComparison(1, 21, -0.02, 0.001)

    (_, second, third) = rank([B, near, C], "pgd-40", paired=paired).ranked
    assert second.difference is not None
    assert third.difference is not None
    assert (second.difference.within_noise, second.difference.p_value) == (False, 0.001)
    assert not third.difference.within_noise
    assert asked == [("near", "b")], "outcomes that cannot matter are not fetched"


def test_differences_are_to_the_best_eligible_model() -> None:
    ranking = rank([A, B], "pgd-40", [Constraint("clean", ">=", 0.85)])
    assert [p.difference and round(p.difference.value, 6) for p in ranking.ranked] == [None, 0.1]


VAL = DIGITS._replace(data="digits-val", digest="v" * 32)
OTHER = DIGITS._replace(digest="e" * 32)
FEWER = DIGITS._replace(num=40)
L2 = DIGITS._replace(threat="l2_0.5")
TRAINED = DIGITS._replace(of_training=True)


@pytest.mark.parametrize("other", [VAL, OTHER, FEWER, L2])
def test_several_protocols_are_refused_with_the_options_that_choose(other) -> None:
    foreign = model("f", other, clean=0.9, pgd_40=0.5)
    with pytest.raises(UserError) as raised:
        by_protocol([A, B, foreign], None, None, None)
    first, *lines = str(raised.value).splitlines()
    assert "cannot be compared" in first
    assert sorted("(2 models," in line for line in lines) == [False, True]
    for line in lines:
        words = dict(word.split("=") for word in line.split()[:2])
        (num,) = {len(by_protocol([A, B, foreign], None, words["data"], words["threat"]))}
        assert num == (2 if "(2 models," in line else 1)


def test_metric_or_threat_can_select_the_protocol() -> None:
    foreign = model("f", L2, clean=0.9, square=0.5)
    assert by_protocol([A, foreign], "square", None, None) == [foreign]
    assert by_protocol([A, foreign], None, None, "linf_8_255") == [A]


def test_evaluations_take_precedence_over_trainings() -> None:
    trained = model("t", TRAINED, clean=0.9, pgd_40_of_training=0.5)
    assert by_protocol([A, trained], None, None, None) == [A]
    assert by_protocol([trained], None, None, None) == [trained]
    assert by_protocol([A, trained], "pgd-40-of-training", None, None) == [trained]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pgd-4", None, None), "did you mean pgd-40?"),
        (("clean", None, None), "expected an attack"),
        ((None, "digits", None), "data=digits: no model was measured so: did you mean digits-test"),
        ((None, None, "linf_8"), "threat=linf_8: no model was measured so: did you mean linf_8"),
    ],
)
def test_unknown_metrics_data_and_threats_are_refused(words, said) -> None:
    with pytest.raises(UserError, match=said):
        by_protocol([A, B], *words)


def test_a_constraint_without_a_measurement_is_refused() -> None:
    check_names([A], [Constraint("clean", ">=", 0.5), Constraint("pgd-40", ">=", 0.5)])
    with pytest.raises(UserError, match=r"did you mean pgd-40\?"):
        check_names([A], [Constraint("pgd-4", ">=", 0.5)])


def test_the_default_metric_is_autoattack_or_the_strongest_attack() -> None:
    weak, strong = {"clean": 0.9, "fgsm": 0.6}, {"pgd_100": 0.4}
    assert strongest([model("x", **weak, **strong), model("y", **weak)]) == "pgd-100"
    assert strongest([model("x", **weak, **strong), model("y", autoattack=0.5)]) == "autoattack"
    far = model("far", clean=0.9, fgsm=0.6)
    beyond = {**far.numbers, "pgd-20_2eps": with_interval(0.01, 1000)}
    assert strongest([Candidate("far", "m", "r", DIGITS, beyond)]) == "fgsm"
    with pytest.raises(UserError, match="metric=NAME is needed"):
        strongest([Candidate("far", "m", "r", DIGITS, {"pgd-20_any": far.numbers["fgsm"]})])


def test_words_with_a_comparison_are_constraints() -> None:
    problems: list[str] = []
    found = read_constraints(["clean>=0.80", "pgd-40<.5"], problems)
    assert problems == []
    assert [is_constraint(word) for word in ("metric=fgsm", "clean>=0.80", "a<1")] == [0, 1, 1]
    assert found == (Constraint("clean", ">=", 0.8), Constraint("pgd-40", "<", 0.5))
    assert [str(one) for one in found] == ["clean>=0.8", "pgd-40<0.5"]


@pytest.mark.parametrize("bound", ["80", "-0.1", "nan", "high", ""])
def test_a_bound_is_a_fraction(bound: str) -> None:
    with pytest.raises(UserError, match=r"expected a fraction from 0 to 1 after >=, got "):
        requested([f"clean>={bound}"])


def test_all_invalid_options_are_reported_together() -> None:
    with pytest.raises(UserError) as raised:
        requested(["clean", "metrc=fgsm", "lr=1", "alias=v3", "doubtful=yes", "data=", "clean>=2"])
    lines = str(raised.value).splitlines()
    assert len(lines) == 7
    for said in (
        "in quotes", "did you mean metric?", "optim.lr has no effect", "alias: expected",
        "doubtful: expected allow | refuse", "data: expected a value", "expected a fraction",
    ):  # fmt: skip
        assert sum(said in line for line in lines) == 1, said


def test_the_saved_command_has_no_output_options(tmp_path) -> None:
    plain = requested(["threat=linf-8/255", "clean>=0.8"])
    assert plain.command == "python -m raymi.select 'clean>=0.8' threat=linf-8/255"
    options = plain.options
    assert (options.threat_name, options.alias, options.experiment) == (
        "linf_8_255", "champion", "raymi",
    )  # fmt: skip
    file = str(tmp_path / "all.json")
    other = requested(["--dry-run", "threat=linf-8/255", "--json", file, "clean>=0.8"])
    assert other.command == plain.command
    assert other.options.dry_run
    assert str(other.options.json_file) == file
