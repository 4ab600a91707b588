"""Pictures show what the runs say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure

from raymi.reporting import look
from raymi.reporting.curves import learning_picture, overfitting_text, together_picture
from raymi.reporting.information import probe_picture, training_picture
from raymi.runs.record import EpochRecord


def drawn(axes):
    """Points of each line with a label."""
    return {
        line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_the_best_and_the_last_epoch_are_marked_where_the_journal_has_them(histories):
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


def test_averaged_weights_have_their_own_curve_and_mark(histories):
    history = histories[0]
    lines = drawn(learning_picture(history).figure.axes[-1])
    val = {one.number: one.val["averaged/robust_acc"] for one in history.phases["classifier"]}
    assert lines["robust, averaged weights"] == list(val.items())
    best, last = history.best_epoch("best-averaged"), max(val)
    name = "best-averaged" if best != last else "best-averaged, last"
    assert lines[f"{name} (epoch {best})"] == [(best, val[best])]
    if best != last:
        assert lines[f"last-averaged (epoch {last})"] == [(last, val[last])]


def test_phases_stand_side_by_side_in_their_order(histories):
    figure = learning_picture(histories[2]).figure
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:3] == ["1. pretraining by AT", "2. estimators", "3. classifier"]
    assert set(drawn(figure.axes[4])) == {"natural MI", "adversarial MI"}


def test_a_loss_is_not_drawn_twice(histories):
    namid, plain, _ = histories
    assert set(drawn(learning_picture(namid).figure.axes[0])) == {"loss", "adversarial loss"}
    assert set(drawn(learning_picture(plain).figure.axes[0])) == {"loss"}


def test_before_the_first_epoch_there_is_no_picture(histories):
    empty = replace(histories[0], phases={})
    assert learning_picture(empty) is None
    assert training_picture(empty) is None
    assert together_picture([empty, histories[1]]) is None
    assert overfitting_text(empty) == ""


def test_the_gap_is_that_of_the_best_and_the_last_epoch(histories):
    epochs = tuple(
        EpochRecord(k, {}, {"clean_acc": 0.9, "robust_acc": acc}, ("best",) if k == 2 else ())
        for k, acc in ((1, 0.4), (2, 0.5), (3, 0.43))
    )
    history = replace(histories[1], phases={"classifier": epochs}, evaluations={})
    assert "7.0 points between epoch 2 (50.0%)" in overfitting_text(history)
    assert "last, 3 (43.0%)" in overfitting_text(history)
    assert (
        "the last epoch, 2, is the best"
        in overfitting_text(replace(history, phases={"classifier": epochs[:2]})).lower()
    )


def test_curves_of_all_runs_are_in_one_picture(histories):
    clean, robust = together_picture(histories).figure.axes
    assert list(drawn(clean)) == ["namid", "plain", "staged"]
    for history in histories:
        val = [(one.number, one.val["robust_acc"]) for one in history.phases["classifier"]]
        assert drawn(robust)[history.name] == val


def test_mutual_information_is_that_of_validation(histories):
    history = histories[0]
    natural, adversarial = training_picture(history).figure.axes
    for axes, kind in ((natural, "natural"), (adversarial, "adversarial")):
        lines = list(drawn(axes).values())
        for line, of in zip(lines, ("natural", "adversarial"), strict=True):
            name = f"mi/{kind}_of_{of}"
            assert line == [(one.number, one.val[name]) for one in history.phases["classifier"]]
    assert training_picture(histories[1]) is None, "a run without critics has no such picture"


def test_probes_are_bars_of_their_estimates(histories):
    history = histories[0]
    picture = probe_picture([history])
    for axes, kind in zip(picture.figure.axes, ("natural", "adversarial"), strict=True):
        for bars, of in zip(axes.containers, ("natural", "adversarial"), strict=True):
            (bar,) = bars
            assert bar.get_width() == pytest.approx(history.probe.estimates[f"mi/{kind}_of_{of}"])
    assert "3 steps of 32 images" in picture.caption
    assert f"{np.log(31):.2f} nats" in picture.caption
    assert probe_picture([histories[1]]) is None


def test_what_is_drawn_differs_by_more_than_colour():
    styles = [look.style_of(k) for k in range(9)]
    assert len({(style.marker, str(style.line)) for style in styles}) == 9
    assert len({look.style_of(k) for k in range(315)}) == 315


def test_colours_are_told_apart_in_grey():
    from matplotlib.colors import to_rgb

    grey = sorted(np.dot(to_rgb(look.style_of(k).color), (0.299, 0.587, 0.114)) for k in range(7))
    assert min(np.diff(grey)) > 0.01
    assert max(grey) < 0.75, "white paper is 1"


def test_the_same_picture_is_the_same_file(histories):
    for kind in ("svg", "png", "pdf"):
        first, second = (learning_picture(histories[1]).as_bytes(kind) for _ in range(2))
        assert first == second


@pytest.mark.filterwarnings("error")
def test_any_name_can_be_drawn(histories):
    for name in ("$x^$", "a\\b{", "数字", "<b>&"):
        named = replace(histories[0], name=name)
        for picture in (together_picture([named, histories[1]]), probe_picture([named])):
            assert picture.as_bytes("svg").startswith(b"<?xml")


def test_letters_of_other_scripts_are_looked_for_in_fonts_that_are_installed(monkeypatch):
    installed = ["DejaVu Serif", "WenQuanYi Micro Hei", "Noto Sans CJK SC", "DejaVu Sans"]
    monkeypatch.setattr(look.font_manager, "get_font_names", lambda: installed)
    look.fonts.cache_clear()
    try:
        with look.looking():
            family = rcParams["font.family"]
    finally:
        look.fonts.cache_clear()
    assert family == ["DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Micro Hei"]


def test_a_font_without_a_bold_face_is_no_news(monkeypatch, caplog):
    monkeypatch.setattr(look, "OTHER_SCRIPTS", ("cmtt10",))  # comes with matplotlib, in one weight
    font_manager.fontManager._findfont_cached.cache_clear()  # which finds, and tells, once
    look.fonts.cache_clear()
    try:
        with look.looking():
            figure = Figure()
            figure.text(0.5, 0.5, "bold", weight="bold")
        look.Picture("bold", "", "", "", figure).as_bytes("png")
        assert "cmtt10" in look.fonts()
    finally:
        look.fonts.cache_clear()
    assert caplog.records == []


def test_a_long_name_keeps_its_ends():
    assert look.short("abcdefghijkl", 12) == "abcdefghijkl"
    assert look.short("abcdefghijklm", 12) == "abc...hijklm"


def test_legends_stay_within_the_picture(histories):
    many = [replace(histories[1], name=f"{'long-' * 8}{k}") for k in range(6)]
    figure = together_picture(many).figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_curves_keep_their_size_however_many_runs_there_are(histories):
    heights = []
    for num in (2, 40):
        many = [replace(histories[1], name=f"run-{k}") for k in range(num)]
        figure = together_picture(many).figure
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.85 * heights[0]


def test_intervals_and_caption_are_of_the_images_that_were_validated(histories):
    history = histories[1]
    some = history.config.validation.model_copy(update={"max_samples": 7})
    config = history.config.model_copy(update={"validation": some})
    picture = learning_picture(replace(history, config=config))
    assert "accuracy on 7 validation images" in picture.caption
    assert "accuracy on 20 validation images" in learning_picture(history).caption


def test_radii_are_written_as_in_papers():
    radii = (0.0, 2 / 255, 0.75 * 8 / 255, 0.75 * 0.1, 0.2, 0.125, 1.0)
    assert [look.radius_text(eps) for eps in radii] == [
        "0", "2/255", "6/255", "0.075", "0.2", "0.125", "1",
    ]  # fmt: skip
