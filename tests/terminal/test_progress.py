"""Progress of a run: a live display on a terminal, plain lines in a log file."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from raymi.recipes import build_config
from raymi.terminal import progress
from raymi.terminal.progress import ProgressDisplay

EPOCHS, STEPS = 3, 20
METRICS = {
    "loss": 1.2345,
    "loss_adv": 1.1,
    "loss_mi": -0.34,
    "loss_estimators": 3.21,
    "mi/natural": 2.25,
    "mi/adversarial": 0.125,
}


def start(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "start", "epoch": 0, "step": 0, "global_step": 0, "workers": 2, "device": "cpu",
        "phase": "classifier", "phases": {"classifier": EPOCHS}, "steps_per_epoch": STEPS,
        "parameters": {"classifier": 42_000, "estimators": 1_200_000},
        "data": {
            "name": "digits", "image_size": 16, "sizes": {"train": 1222, "val": 215, "test": 360}
        },
        **changes,
    }  # fmt: skip


def step(epoch: int, number: int) -> dict[str, Any]:
    return {
        "kind": "step", "epoch": epoch, "step": number, "global_step": epoch * STEPS + number,
        "phase": "classifier", "images_per_s": 1234.4, "metrics": METRICS,
    }  # fmt: skip


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "epoch", "phase": "classifier", "epoch": number, "train": METRICS,
        "is_best": number == 1,
        "val": {"clean_acc": 0.98, "robust_acc": 0.7012}, "images_per_s": 1234.4, **changes,
    }  # fmt: skip


def a_run() -> list[dict[str, Any]]:
    events = [start()]
    for i in range(EPOCHS):
        events += [step(i, 10), step(i, 20)]
        events += [{"kind": "evaluating", "what": "validate", "done": 64, "of": 215}, epoch(i + 1)]
    return [*events, {"kind": "evaluating", "what": "last", "done": 128, "of": 360}]


def shown(events: list[dict[str, Any]], *, terminal: bool, width: int = 120) -> str:
    """Returns all output; on a terminal each state of the live display once."""
    config = build_config("quickstart", {"optim": {"epochs": EPOCHS}})
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, highlight=False)
    with ProgressDisplay(console, config) as display:
        for event in events:
            display.event(event)
            display.bar.refresh()
    return file.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def test_log_file_gets_a_start_line_a_header_and_a_line_for_each_epoch() -> None:
    lines = shown(a_run(), terminal=False, width=40).splitlines()
    assert len(lines) == 4 + EPOCHS
    assert lines[0] == "digits: 1222 train, 215 validation, 360 test images (16x16)"
    assert lines[1] == (
        "NAMID (bounded): L_inf eps 0.1, classifier small-cnn 42 k parameters, "
        "estimators 1.2 M parameters, 2 workers on cpu"
    )
    assert lines[2].endswith("val: accuracy on validation images, robust under PGD-10")
    heading = "epoch loss loss_adv MI nat MI adv val clean val robust images/s"
    assert " ".join(lines[3].split()) == heading
    row = "1/3 1.234 1.100 2.250 0.125 98.0% 70.1% 1234 best"
    assert " ".join(lines[4].split()) == row
    assert [line.split()[0] for line in lines[4:]] == ["1/3", "2/3", "3/3"]


def test_log_file_gets_no_escape_codes() -> None:
    text = shown(a_run(), terminal=False)
    assert not set(text) & set("\x1b\r\b")


def test_columns_are_aligned_with_their_headings() -> None:
    header, *rows = shown([epoch(1), epoch(2)], terminal=False).splitlines()
    ends = [match.end() for match in re.finditer(r"(MI \w+|val \w+|\S+)", header)]
    for row in rows:
        numbers = [match.end() for match in re.finditer(r"\S+", row)]
        assert numbers[1:8] == ends[1:8]


def test_terminal_shows_phase_epoch_step_losses_mi_accuracy_throughput_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    text = plain(shown([*a_run()[:6]], terminal=True))
    for part in (
        "starting Ray and the workers",
        "training · epoch 1/3",
        "step 10/20",
        "loss 1.234 · adv 1.100 · mi -0.340 · estimators 3.210",
        "MI nat 2.250 · MI adv 0.125",
        "1234 images/s",
        "validating",
        "64/215 images",
        "val clean 98.0%, robust 70.1%",
    ):
        assert part in text
    assert re.search(r"\d:\d\d:\d\d left", text)


def test_terminal_has_all_lines_of_a_log_file() -> None:
    log = shown(a_run(), terminal=False).splitlines()
    live = plain(shown(a_run(), terminal=True)).splitlines()
    assert [line for line in log if line not in live] == []


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_live_line_is_wider_than_the_terminal(width: int) -> None:
    events = [event for event in a_run() if event["kind"] in ("step", "evaluating")]
    text = plain(shown(events, terminal=True, width=width))
    assert max(map(len, text.splitlines())) <= width


def test_baselines_without_mi_show_no_mi() -> None:
    metrics = {"loss": 1.0, "loss_adv": 1.0}
    text = shown([epoch(1, train=metrics, val={})], terminal=False)
    assert text.splitlines()[1].split()[1:7] == ["1.000", "1.000", "-", "-", "-", "-"]
    live = plain(shown([{**step(0, 10), "metrics": metrics}], terminal=True))
    assert "MI" not in live


def test_bounds_stand_where_estimates_of_other_forms_do() -> None:
    metrics = {"loss": 1.0, "mi/natural_lower": 0.25, "mi/adversarial_upper": 0.5}
    text = shown([epoch(1, train=metrics, val={})], terminal=False)
    assert text.splitlines()[1].split()[3:5] == ["0.250", "0.500"]


def test_numbers_that_are_not_finite_are_shown() -> None:
    broken = dict.fromkeys(METRICS, "nan")
    text = shown([{**step(0, 10), "metrics": broken}, epoch(1, train=broken)], terminal=True)
    assert "nan" in text


def test_continued_run_shows_its_position() -> None:
    text = shown([start(epoch=2, step=7, global_step=47)], terminal=False)
    assert "continuing after epoch 2, step 7" in text


def test_unknown_events_are_ignored() -> None:
    assert shown([{"kind": "stopped"}, {"kind": "of the future"}], terminal=False) == ""


def test_brackets_are_literal() -> None:
    file = io.StringIO()
    display = ProgressDisplay(Console(file=file), build_config("quickstart"))
    display.print_line("run in /data/[old]/[/x]")
    assert file.getvalue() == "run in /data/[old]/[/x]\n"


def test_time_left_uses_the_pace_since_the_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    clock = progress.TimeLeft()
    clock.restart(1000)
    assert clock.left(1000, 2000) == "?"
    now += 10
    assert clock.left(1010, 5000) == "1:06:30"


def test_phases_averages_and_probes_are_shown() -> None:
    phases = {"pretraining": 2, "estimators": 1, "classifier": 2}
    averaged = {"averaged/clean_acc": 0.9, "averaged/robust_acc": 0.75}
    val = {"clean_acc": 0.98, "robust_acc": 0.7012, **averaged}
    estimates = {"mi/natural_of_natural": 1.25, "mi/natural_of_natural_shuffled": 0.001}
    text = shown(
        [
            start(phases=phases),
            epoch(2, phase="pretraining"),
            {**step(0, 10), "phase": "estimators"},
            epoch(1, phase="estimators", train={"loss_estimators": 0.5}),
            epoch(1, train={"mi/natural_of_adversarial": 0.625}, val=val, better=["best-averaged"]),
            {"kind": "probe", "which": "best", "estimates": estimates},
        ],
        terminal=False,
    )
    lines = text.splitlines()
    assert [line for line in lines if "epoch" in line].count(lines[4]) == 3
    assert lines[3] == "pretraining by AT"
    assert lines[5].split()[0] == "2/2"
    assert lines[6] == "training the estimators"
    assert lines[9] == "training"
    assert "0.625" in lines[11]
    assert lines[11].endswith("averaged 90.0% 75.0% best")
    assert lines[12].startswith(
        "fresh probes of the best model, in nats (with shuffled outputs): I_N(h(x)) 1.250 (0.001)"
    )
