"""Pictures show the values of the journals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from raymi.reporting import style
from raymi.reporting.learning_curves import learning_picture, overfitting_text, together_picture
from raymi.reporting.mutual_information import probe_picture, training_picture


def drawn(axes):
    """Points of each line with a label."""
    return {
        line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_the_best_and_the_last_epoch_are_marked(histories):
    for history in histories:
        accuracies = learning_picture(history).figure.axes[-1]
        lines = drawn(accuracies)
        val = {one.number: one.val["robust_acc"] for one in history.phases["classifier"]}
        best, last = history.best_epoch(), max(val)
        name = "best" if best != last else "best, last"
        assert lines[f"{name} (epoch {best})"] == [(best, val[best])]
        if best != last:
            assert lines[f"last (epoch {last})"] == [(last, val[last])]
        assert lines["robust"] == list(val.items())


def test_averaged_weights_have_a_separate_curve_and_mark(histories):
    history = histories[0]
    lines = drawn(learning_picture(history).figure.axes[-1])
    val = {one.number: one.val["averaged/robust_acc"] for one in history.phases["classifier"]}
    assert lines["robust, averaged weights"] == list(val.items())
    best, last = history.best_epoch("best-averaged"), max(val)
    name = "best-averaged" if best != last else "best-averaged, last"
    assert lines[f"{name} (epoch {best})"] == [(best, val[best])]
    if best != last:
        assert lines[f"last-averaged (epoch {last})"] == [(last, val[last])]


def test_phases_are_side_by_side_in_order(histories):
    figure = learning_picture(histories[2]).figure
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:3] == ["1. pretraining by AT", "2. estimators", "3. classifier"]
    assert set(drawn(figure.axes[4])) == {"natural MI", "adversarial MI"}


def test_a_loss_is_not_drawn_twice(histories):
    namid, plain, _ = histories
    assert set(drawn(learning_picture(namid).figure.axes[0])) == {"loss", "adversarial loss"}
    assert set(drawn(learning_picture(plain).figure.axes[0])) == {"loss"}


def test_a_run_without_epochs_has_no_picture(histories):
    empty = replace(histories[0], events=[])
    assert learning_picture(empty) is None
    assert training_picture(empty) is None
    assert together_picture([empty, histories[1]]) is None
    assert overfitting_text(empty) == ""


def test_the_overfitting_gap_is_between_best_and_last_epoch(histories):
    epochs = [
        {
            "kind": "epoch", "phase": "classifier", "epoch": number, "train": {},
            "val": {"clean_acc": 0.9, "robust_acc": robust}, "better": ["best"] * (number == 2),
        }
        for number, robust in ((1, 0.4), (2, 0.5), (3, 0.43))
    ]  # fmt: skip
    text = overfitting_text(replace(histories[1], events=epochs))
    assert "7.0 points between the best epoch, 2 (50.0%)" in text
    assert "the last one, 3 (43.0%)" in text
    text = overfitting_text(replace(histories[1], events=epochs[:2]))
    assert text.startswith("The last epoch, 2, is the best one")


def test_the_curves_of_all_runs_share_a_picture(histories):
    clean, robust = together_picture(histories).figure.axes
    assert list(drawn(clean)) == ["namid", "plain", "staged"]
    for history in histories:
        val = [(one.number, one.val["robust_acc"]) for one in history.phases["classifier"]]
        assert drawn(robust)[history.name] == val


def test_mutual_information_equals_that_of_validation(histories):
    history = histories[0]
    natural, adversarial = training_picture(history).figure.axes
    for axes, kind in ((natural, "natural"), (adversarial, "adversarial")):
        lines = list(drawn(axes).values())
        for line, of in zip(lines, ("natural", "adversarial"), strict=True):
            name = f"mi/{kind}_of_{of}"
            assert line == [(one.number, one.val[name]) for one in history.phases["classifier"]]
    assert training_picture(histories[1]) is None, "a run without critics has none"


def test_bounds_stand_where_estimates_of_other_forms_do(without_estimators):
    history = without_estimators
    bounds = {"teacher": ("natural_lower", "adversarial_upper"), "js": ("js",)}
    names = bounds[history.config.mi.form]
    picture = training_picture(history)
    (axes,) = picture.figure.axes
    epochs = history.phases["classifier"]
    expected = [[(one.number, one.val[f"mi/{name}"]) for one in epochs] for name in names]
    assert sorted(drawn(axes).values()) == sorted(expected)
    assert f"{epochs[-1].val['mi/' + names[0]]:.2f} nats" in picture.alt


def test_probes_are_bars_of_their_estimates(histories):
    history = histories[0]
    picture = probe_picture([history])
    for axes, kind in zip(picture.figure.axes, ("natural", "adversarial"), strict=True):
        for bars, of in zip(axes.containers, ("natural", "adversarial"), strict=True):
            (bar,) = bars
            name = f"mi/{kind}_of_{of}"
            assert bar.get_width() == pytest.approx(history.probe.estimates[name])
            baseline = history.probe.estimates[f"{name}_shuffled"]
            assert f"{bar.get_width():.2f} ({baseline:.2f})" in [
                one.get_text() for one in axes.texts
            ]
            assert f"{bar.get_width():.2f} nats (shuffled {baseline:.2f})" in picture.alt
    assert "3 steps of 32 images" in picture.caption
    assert f"{np.log(64):.2f} nats" in picture.caption
    assert probe_picture([histories[1]]) is None


def test_curves_differ_by_more_than_colour():
    styles = [(one["marker"], str(one["linestyle"])) for one in style.STYLES]
    assert len(set(styles[:9])) == 9
    assert len(set(map(str, style.STYLES))) == len(style.STYLES) == 315


def test_colours_differ_in_grey():
    grey = sorted(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in style.COLOURS)
    assert min(np.diff(grey)) > 0.01
    assert max(grey) < 0.75, "white paper is 1"


def test_equal_pictures_are_equal_files(histories):
    for kind in ("svg", "png", "pdf"):
        first, second = (learning_picture(histories[1]).as_bytes(kind) for _ in range(2))
        assert first == second


@pytest.mark.filterwarnings("error")
def test_all_names_can_be_drawn(histories):
    for name in ("$x^$", "a\\b{", "数字", "<b>&"):
        named = replace(histories[0], name=name)
        for picture in (together_picture([named, histories[1]]), probe_picture([named])):
            assert picture.as_bytes("svg").startswith(b"<?xml")


def test_missing_fonts_and_bold_faces_give_no_warning(monkeypatch, caplog):
    fonts = ["no such font", "cmtt10"]  # matplotlib has cmtt10, without a bold face
    monkeypatch.setitem(style._SETTINGS, "font.family", fonts)
    font_manager.fontManager._findfont_cached.cache_clear()  # each font is warned of once
    with style.report_style():
        figure = Figure()
        figure.text(0.5, 0.5, "bold", weight="bold")
    style.Picture("bold", "", "", "", figure).as_bytes("png")
    assert caplog.records == []


def test_legends_stay_within_the_picture(histories):
    many = [replace(histories[1], name=f"{'long-' * 8}{k}") for k in range(6)]
    figure = together_picture(many).figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_the_height_of_curves_does_not_depend_on_the_number_of_runs(histories):
    heights = []
    for num in (2, 40):
        many = [replace(histories[1], name=f"run-{k}") for k in range(num)]
        figure = together_picture(many).figure
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.85 * heights[0]


def test_the_caption_has_the_number_of_validated_images(histories):
    history = histories[1]
    some = history.config.validation.model_copy(update={"max_samples": 7})
    config = history.config.model_copy(update={"validation": some})
    picture = learning_picture(replace(history, config=config))
    assert "accuracy on 7 validation images" in picture.caption
    assert "accuracy on 20 validation images" in learning_picture(history).caption
