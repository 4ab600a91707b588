"""Plots of a sweep and the table of its trials."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from tiny_sweeps import begin, trained

from raymi.tuning.plots import importance_picture, pareto_front, pareto_picture
from raymi.tuning.results_table import Finalist, Row, as_columns, trial_rows
from raymi.tuning.study import State
from raymi.tuning.sweep_folder import Measurement, TrialRun, best_so_far


def row(number: int, clean: float, robust: float, state: State = "finished") -> Row:
    return Row(number, state, {"optim.lr": 0.05}, by_seed={0: Measurement(3, clean, robust)})


FAILED = Row(5, "failed", {"optim.lr": 1e30, "terms": "both"}, "expected finite losses")
ROWS = [
    row(0, 0.9, 0.4),
    row(1, 0.8, 0.5),
    row(2, 0.8, 0.45),  # beaten by 1
    row(3, 0.7, 0.6, "stopped"),
    row(4, 0.75, 0.5),  # beaten by 1
    FAILED,
]


def points(axes: Any, label: str) -> set[tuple[float, float]]:
    (drawn,) = [one for one in axes.collections if one.get_label() == label]
    return {tuple(point) for point in drawn.get_offsets().tolist()}


def test_the_front_has_the_finished_trials_that_no_other_beats():
    assert [one.number for one in pareto_front(ROWS)] == [1, 0]
    rng = np.random.default_rng(0)
    many = [row(k, *rng.integers(0, 6, 2) / 10) for k in range(40)]
    front = {one.number for one in pareto_front(many)}
    for one in many:
        beaten = any(
            other.clean >= one.clean
            and other.robust >= one.robust
            and (other.clean > one.clean or other.robust > one.robust)
            for other in many
        )
        assert beaten == (one.number not in front)
    assert pareto_front([FAILED]) == []


def test_the_plot_of_the_front_has_all_trials_and_labels_the_front():
    figure = pareto_picture("mine", ROWS)
    (axes,) = figure.axes
    assert points(axes, "finished") == {(0.9, 0.4), (0.8, 0.5), (0.8, 0.45), (0.75, 0.5)}
    assert points(axes, "stopped") == {(0.7, 0.6)}
    assert {text.get_text(): text.xy for text in axes.texts} == {"1": (0.8, 0.5), "0": (0.9, 0.4)}
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[0.8, 0.5], [0.9, 0.4]]
    assert axes.get_title() == "mine"
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "clean accuracy (validation)",
        "robust accuracy (validation)",
    )
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["finished", "stopped", "Pareto front"]


def test_the_largest_importance_is_on_top():
    figure = importance_picture("mine", {"optim.lr": 0.25, "mi.balance": 0.7, "mi.hidden": 0.05})
    (axes,) = figure.axes
    bars = [bar.get_width() for bar in axes.patches]
    assert bars == [0.05, 0.25, 0.7], "bottom-up"
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["mi.hidden", "optim.lr", "mi.balance"]
    assert [text.get_text() for text in axes.texts] == ["5%", "25%", "70%"]


@pytest.mark.parametrize("rows", [[], [FAILED], ROWS[:1]])
def test_plots_of_few_trials_can_be_saved(rows, tmp_path):
    path = tmp_path / "pareto.png"
    pareto_picture("mine", rows).savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plots_do_not_import_pyplot():
    code = "import sys, raymi.tuning.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_table_has_a_column_for_each_drawn_parameter():
    header, lines = as_columns([ROWS[0], FAILED])
    assert header == [
        "trial", "state", "optim.lr", "terms", "epochs", "clean", "robust", "reason",
    ]  # fmt: skip
    assert lines == [
        [0, "finished", 0.05, None, 3, 0.9, 0.4, None],
        [5, "failed", 1e30, "both", None, None, None, "expected finite losses"],
    ]


def test_rows_have_the_accuracies_of_real_trials(tmp_path):
    sweep = begin(tmp_path / "sweep", **{"optim.epochs": 2})
    study = sweep.study()
    first, second = study.ask(), study.ask()
    _, reported = trained(sweep, TrialRun(first.number, 0), first.values)
    last = best_so_far(reported)[-1]
    study.finish(first.number, [last.robust])
    study.fail(second.number, "its process was lost 3 times")
    one, other = trial_rows(sweep, study)
    assert one == Row(0, "finished", first.values, by_seed={0: last})
    assert one.measurement == last
    assert (other.state, other.measurement) == ("failed", None)
    assert other.reason == "its process was lost 3 times"


def test_a_table_has_errors_over_seeds_and_results_of_the_final_evaluation():
    def over(number: int, *robust: float, final: Finalist | None = None) -> Row:
        by_seed = {seed: Measurement(2, 0.9, value) for seed, value in enumerate(robust)}
        return Row(number, "finished", {}, by_seed=by_seed, final=final)

    first = over(0, 0.4, 0.6, final=Finalist(0, TrialRun(0, 1), 0.5, 0.25))
    header, (line, other) = as_columns([first, over(1, 0.5)])
    found = dict(zip(header, line, strict=True))
    assert (found["robust"], found["robust_error"], found["seeds"]) == (0.5, pytest.approx(0.1), 2)
    assert (found["pgd40"], found["autoattack"]) == (0.5, 0.25)
    assert dict(zip(header, other, strict=True))["autoattack"] is None
