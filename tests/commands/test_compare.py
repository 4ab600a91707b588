"""`python -m raymi.compare`: arithmetic of the table, and every way in which its processes end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mlflow_store import client, history, in_folder, runs
from raymi_command import Ended
from tiny_runs import TINY

from raymi import compare
from raymi.commands.compare import run as comparison_runs
from raymi.commands.compare.options import plan_comparison, settings_of_arm
from raymi.commands.compare.report import write_outcome
from raymi.commands.compare.results import (
    RunResult,
    finished_result,
    summarise,
    table,
)
from raymi.commands.compare.run import same_weights, slots
from raymi.commands.compare.tracking import tracked_state
from raymi.formatting import markdown_table
from raymi.hardware import available_cores
from raymi.recipes import BASE_RECIPES, VARIANTS
from raymi.runs.record import RunRecord
from raymi.runs.run_folder import RunFolder


def result(arm: str, seed: int, clean: float, robust: float, val: float | None = 0.5) -> RunResult:
    return RunResult(arm, seed, "finished", clean=clean, robust=robust, val=val)


def test_differences_are_paired_by_seed() -> None:
    results = [
        result("at", 0, 0.80, 0.40), result("at", 1, 0.90, 0.50), result("at", 2, 0.10, 0.10),
        result("bounded", 1, 0.93, 0.52), result("bounded", 0, 0.81, 0.41),
    ]  # fmt: skip
    at, bounded = summarise(results, ["at", "bounded"])
    assert (at.num, bounded.num, at.differences) == (3, 2, {})
    clean, robust = bounded.differences["clean"], bounded.differences["robust"]
    assert clean is not None
    assert robust is not None
    assert (clean.mean, clean.error, clean.num) == pytest.approx((0.02, 0.01, 2))
    assert (robust.mean, robust.error, robust.num) == pytest.approx((0.015, 0.005, 2))


def test_the_table_shows_percent_and_unfinished_runs() -> None:
    results = [
        result("at", 0, 0.80, 0.40, 0.5), result("at", 1, 0.90, 0.50, 0.5),
        result("random", 0, 0.80, 0.41, None), result("random", 1, 0.90, 0.50, None),
        result("paper", 0, 0.70, 0.35, 0.4), RunResult("paper", 1, "diverged", step=7),
        RunResult("wmim", 0, "failed", reason="x"), RunResult("wmim", 1, "failed", reason="x"),
    ]  # fmt: skip
    rows = table(summarise(results, ["at", "random", "paper", "wmim"]), "PGD-40")
    assert rows == [
        ("arm", "n", "clean %", "PGD-40 %", "val robust %",
         "clean - at", "PGD-40 - at", "val robust - at"),
        ("at", "2", "85.00 ± 5.00", "45.00 ± 5.00", "50.00 ± 0.00", "-", "-", "-"),
        ("random", "2", "85.00 ± 5.00", "45.50 ± 4.50", "-",
         "+0.00 ± 0.00", "+0.50 ± 0.50", "-"),
        ("paper", "1 (1 diverged)", "70.00", "35.00", "40.00", "-10.00", "-5.00", "-10.00"),
        ("wmim", "0 (2 failed)", "-", "-", "-", "-", "-", "-"),
    ]  # fmt: skip
    assert markdown_table(rows).splitlines()[:3] == [
        "| arm | n | clean % | PGD-40 % | val robust % "
        "| clean - at | PGD-40 - at | val robust - at |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| at | 2 | 85.00 ± 5.00 | 45.00 ± 5.00 | 50.00 ± 0.00 | - | - | - |",
    ]


def journal(*, chosen: str = "best", finished: bool = True) -> list[dict[str, Any]]:
    """Events of a staged run in two sessions, with epoch 2 recorded twice."""

    def epoch(number: int, val: float, phase: str = "classifier") -> dict[str, Any]:
        robust = {"robust_acc": val, "averaged/robust_acc": val + 0.1}
        event = {"kind": "epoch", "phase": phase, "epoch": number, "val": robust}
        return {**event, "train": {}, "better": []}

    def evaluation(which: str, of_epoch: int, clean: float, robust: float) -> dict[str, Any]:
        return {
            "kind": "evaluation", "which": which, "of_epoch": of_epoch, "clean": clean,
            "robust": robust, "chosen": which == chosen, "attack": {"steps": 40}, "num": 9,
        }  # fmt: skip

    events = [
        {"kind": "start"}, epoch(1, 0.9, "pretraining"), epoch(1, 0.2), epoch(2, 0.0),
        {"kind": "start"}, epoch(2, 0.3), epoch(2, 0.9, "estimators"),
        evaluation("last", 2, 0.1, 0.1), evaluation("best", 2, 0.8, 0.4),
        evaluation("best-averaged", 1, 0.9, 0.5),
    ]  # fmt: skip
    times = [0, 30, 60, 120, 1000, 1030, 1040, 1060, 1060, 1060, 1060]
    events += [{"kind": "finished"}] * finished
    return [{**event, "time": at} for event, at in zip(events, times, strict=False)]


def test_a_run_s_result_equals_that_of_its_chosen_model() -> None:
    assert finished_result("at", 3, RunRecord(journal())) == RunResult(
        "at", 3, "finished", clean=0.8, robust=0.4, val=0.3, model="best", epoch=2,
        attack_steps=40, minutes=3.0,
    )  # fmt: skip
    averaged = finished_result("at", 3, RunRecord(journal(chosen="best-averaged")))
    assert averaged is not None
    assert (averaged.clean, averaged.robust, averaged.epoch) == (0.9, 0.5, 1)
    assert averaged.val == pytest.approx(0.3)
    assert finished_result("at", 3, RunRecord(journal(finished=False))) is None


def test_the_time_between_two_sessions_is_not_counted() -> None:
    assert RunRecord(journal()).minutes == (120 + 60) / 60
    assert RunRecord([]).minutes == 0


def test_weights_are_compared_bit_for_bit(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in "ab"]
    zeros = {"w": torch.zeros(2), "n": torch.tensor(1)}
    for folder in folders:
        folder.path.mkdir()
        for which in ("best", "last"):
            safetensors.torch.save_file(zeros, folder.weights(which))
    assert same_weights(*folders)
    safetensors.torch.save_file({**zeros, "w": -torch.zeros(2)}, folders[1].weights("last"))
    assert not same_weights(*folders)  # -0.0 == 0.0, with other bits
    safetensors.torch.save_file(zeros, folders[1].weights("last"))
    safetensors.torch.save_file(zeros, folders[1].weights("best-averaged"))
    assert not same_weights(*folders)


def test_slots_share_the_cores_and_take_the_gpus_in_turn() -> None:
    assert slots(2, 9, []) == [{"OMP_NUM_THREADS": "4", "PYTHONUNBUFFERED": "1"}] * 2
    many = slots(3, 2, ["0", "5"])
    assert [s["CUDA_VISIBLE_DEVICES"] for s in many] == ["0", "5", "0"]
    assert {s["OMP_NUM_THREADS"] for s in many} == {"1"}


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Ended:
        code = compare.main([*words, "tracking.enabled=false"])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


FAKE = """
import json, os, pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(words["out"], words["name"])
(folder / "stop").unlink(missing_ok=True)
with open(folder / "began", "a") as file:
    file.write(os.environ["OMP_NUM_THREADS"] + "\\n")
def write(kind, **fields):
    with open(folder / "journal.jsonl", "a") as file:
        file.write(json.dumps({"kind": kind, "time": time.time(), **fields}) + "\\n")
write("start")
arm = words["recipe"].removeprefix("quickstart-")
behaviour = os.environ.get("FAKE_" + arm.replace("-", "_").upper(), "")
if behaviour == "diverge":
    print("Traceback")
    sys.exit("error: expected finite losses, got loss = nan at step 12 (phase c)\\n")
if behaviour == "fail":
    print("Traceback")
    sys.exit("ZeroDivisionError: ours")
if behaviour == "user":
    print("error: no data", file=sys.stderr)
    sys.exit(2)
while behaviour == "wait" and not (folder / "stop").exists():
    time.sleep(0.02)
if behaviour == "wait":
    write("stopped")
    sys.exit(1)
write("epoch", phase="classifier", epoch=1, val={"robust_acc": 0.5}, train={},
      better=["best"])
write("evaluation", which="best", of_epoch=1, clean=0.9, robust=0.4, chosen=True, num=9,
      attack={"steps": 40})
write("finished")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a comparison whose runs end as FAKE_ARM says, in place of `raymi.standalone`."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    monkeypatch.setattr(comparison_runs, "PROGRAM", (sys.executable, "-S", str(program)))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    return tmp_path / "runs" / "quickstart-comparison"


def began(folder: Path) -> dict[str, int]:
    """Returns the number of starts of each run."""
    return {path.parent.name: len(path.read_text().split()) for path in folder.glob("*/began")}


def test_finished_runs_are_not_repeated(run: Run, fake: Path) -> None:
    words = ("arms=at,bounded", "seeds=0,1", "parallel=2")
    first = run(*words)
    assert first.code == 0, first
    names = {"at-seed0", "bounded-seed0", "at-seed1", "bounded-seed1"}
    assert began(fake) == dict.fromkeys(names, 1)
    threads = max(1, available_cores() // 2)
    assert (fake / "at-seed0" / "began").read_text() == f"{threads}\n"
    files = [(fake / name).read_text() for name in ("comparison.md", "comparison.json")]
    again = run(*words)
    assert (again.code, began(fake)) == (0, dict.fromkeys(names, 1))
    assert "4 already finished" in again.out
    assert [(fake / name).read_text() for name in ("comparison.md", "comparison.json")] == files
    assert run(*words[:1], "seeds=0..2", "parallel=2").code == 0
    assert began(fake) == dict.fromkeys({*names, "at-seed2", "bounded-seed2"}, 1)
    numbers = json.loads((fake / "comparison.json").read_text())
    assert (numbers["reference"], numbers["seeds"], len(numbers["runs"])) == ("at", [0, 1, 2], 6)
    assert numbers["summary"][1]["differences"]["clean"] == {"mean": 0.0, "error": 0.0, "num": 3}


def test_all_arms_of_a_seed_run_before_the_next_seed(run: Run, fake: Path) -> None:
    ended = run("arms=at,mi-off", "seeds=3,1", "parallel=1", "name=mine")
    assert ended.code == 0
    order = [line.partition(":")[0] for line in ended.out.splitlines() if " min" in line]
    assert order == ["at seed 3", "mi-off seed 3", "at seed 1", "mi-off seed 1"]
    assert (fake.parent / "mine" / "comparison.md").is_file()


def test_failed_and_diverged_runs_do_not_stop_the_others(
    run: Run, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANDOM", "fail")
    monkeypatch.setenv("FAKE_PAPER", "diverge")
    words = ("arms=at,random,paper,bounded", "seeds=0", "parallel=2")
    ended = run(*words)
    assert ended.code == 1
    assert "random seed 0: failed: ZeroDivisionError: ours (see " in ended.out
    assert "paper seed 0: diverged at step 12" in ended.out
    table = " ".join(ended.out.split())
    assert "│ random │ 0 (1 failed) │ - │" in table
    assert "│ paper │ 0 (1 diverged) │ - │" in table
    assert "│ bounded │ 1 │ 90.00 │ 40.00 │ 50.00 │ +0.00 │" in table
    monkeypatch.delenv("FAKE_RANDOM")
    assert run(*words).code == 0  # a run that diverged is a result
    assert began(fake) == {"at-seed0": 1, "random-seed0": 2, "paper-seed0": 1, "bounded-seed0": 1}


def test_invalid_input_stops_the_remaining_runs(
    run: Run, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_AT", "user")
    ended = run("arms=at,random", "seeds=0..4", "parallel=1")
    assert (ended.code, began(fake)) == (1, {"at-seed0": 1})
    assert "failed: error: no data" in ended.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_runs_and_prints_how_to_continue(
    run: Run, fake: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setenv("FAKE_RANDOM", "wait")

    def interrupt() -> None:
        while not list(fake.glob("random-*/journal.jsonl")):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    words = ("arms=at,random", "seeds=0,1", "parallel=1")
    ended = run(*words)
    thread.join()
    assert ended.code == code
    assert f"stopped; to continue: python -m raymi.compare {' '.join(words)}" in ended.out
    assert signal.getsignal(number) == before
    events = (fake / "random-seed0" / "journal.jsonl").read_text()
    assert '"stopped"' in events
    assert began(fake) == {"at-seed0": 1, "random-seed0": 1}
    monkeypatch.delenv("FAKE_RANDOM")
    assert run(*words).code == 0
    assert began(fake) == {"at-seed0": 1, "random-seed0": 2, "at-seed1": 1, "random-seed1": 1}


def test_a_run_that_does_not_stop_in_time_is_killed(
    run: Run, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_runs, "STOP_SECONDS", 0.2)
    program = tmp_path / "fake.py"
    program.write_text(FAKE.replace('not (folder / "stop").exists()', "True"))
    monkeypatch.setenv("FAKE_AT", "wait")

    def interrupt() -> None:
        while not list(fake.glob("at-*/journal.jsonl")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert run("arms=at", "seeds=0", "parallel=1").code == 130


def test_other_settings_under_the_same_name_are_refused(run: Run, fake: Path) -> None:
    def begin(*words: str) -> None:
        common = ("arms=at,random", "seeds=0", "lr=0.2", "tracking.enabled=false")
        for one in plan_comparison([*common, *words]).runs:
            one.folder.path.mkdir(parents=True)
            one.folder.write_config(one.config)

    begin()
    same = ["arms=at,random", "seeds=0", "lr=0.2", "tracking.enabled=false"]
    assert plan_comparison(same).folder == fake
    ended = run("arms=at,random", "seeds=0", "lr=0.3")
    assert ended.code == 2
    assert ended.err.count("was started with other settings (optim.lr=0.2, now 0.3)") == 1
    assert began(fake) == {}
    assert plan_comparison(["arms=at,random", "seeds=0", "lr=0.3", "name=other"]).runs


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["arms=at,bonded"], ["unknown arm 'bonded': did you mean bounded?"]),
        (["arms=at,at"], ["arms: at is given twice"]),
        (["arms=,"], ["arms: expected names"]),
        (["recipe=quikstart"], ["unknown recipe 'quikstart': did you mean quickstart?"]),
        (["recipe=quickstart-at"], ["quickstart-at is a variant already"]),
        (["seeds=x"], ["seeds: expected 0..9 or 0,1,2, got 'x'"]),
        (["seeds=1..x"], ["seeds: expected 0..9"]),
        (["seeds=-1"], ["seeds: expected 0..9"]),
        (["seeds=3..1"], ["seeds: expected the smaller one first"]),
        (["seeds=0..2,1"], ["seeds: a seed is given twice"]),
        (["parallel=0"], ["parallel: expected whole number >= 1 | none, got '0'"]),
        (["parallel=two"], ["parallel: expected whole number >= 1"]),
        (["seed=1"], ["seed cannot be set here: set seeds=0..9"]),
        (["workers=2"], ["scaling.workers cannot be set here"]),
        (["loss.base=trades"], ["it defines the arms at, at-clean-forward"]),
        (["mi.form=paper"], ["mi.form cannot be set here"]),
        (["arms=at,no-difference"], ["quickstart-no-difference has no MI term left"]),
        (["eps=8", "lrr=1", "parallel=0"], ["did you mean eps=8/255?", "'lrr'", "parallel"]),
        (["eps=8"], ["did you mean eps=8/255?"]),
        (["data.name=folder", "data.root=/nope"], ["data.root=/nope does not exist"]),
        (["name=a/b"], ["expected a plain name"]),
        (["out=file/x"], ["set out=FOLDER to one that is writable"]),
        (["bounded"], ["did you mean arms=bounded?"]),
    ],
)
def test_invalid_input_is_one_error_before_any_run_starts(
    run: Run, fake: Path, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    (tmp_path / "file").touch()
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert [part for part in parts if part not in err] == []
    assert len(err.splitlines()) == len(parts)
    assert not fake.exists()


@pytest.mark.parametrize(
    ("arm", "reused"),
    [("paper", True), ("released", True), ("bounded", False), ("at", False), ("random", False)],
)
def test_pretrained_runs_reach_staged_arms_only(arm: str, reused: bool) -> None:
    settings = {"mi.pretrained": "a", "optim.lr": "0.1"}
    expected = settings if reused else {"optim.lr": "0.1"}
    assert settings_of_arm("quickstart", arm, settings) == expected


@pytest.mark.parametrize(
    ("arm", "used"),
    [("bounded", ["hidden"]), ("js", []), ("adr", ["teacher_ema"]), ("random", ["hidden"])],
)
def test_settings_reach_the_arms_whose_form_uses_them(arm: str, used: list[str]) -> None:
    settings = {"mi.hidden": "32", "mi.teacher_ema": "0.9"}
    expected = {f"mi.{key}": settings[f"mi.{key}"] for key in used}
    assert settings_of_arm("quickstart", arm, settings) == expected


def test_shared_settings_keep_what_defines_an_arm(run: Run, fake: Path) -> None:
    plan = plan_comparison(["arms=at,random,bounded", "mi.balance=0.3", "epochs=2", "seeds=4"])
    at, random, bounded = (one.config for one in plan.runs)
    assert not at.mi.enabled
    assert (random.mi.balance, random.mi.form) == (0.3, "random")
    assert (bounded.mi.balance, bounded.mi.form) == (0.3, "bounded")
    for one in plan.runs:
        assert (one.config.optim.epochs, one.config.seed, one.config.scaling.workers) == (2, 4, 1)
        assert one.folder.path == fake / f"{one.arm}-seed4"


def test_a_recipe_file_is_laid_over_the_base_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('recipe = "quickstart"\n[optim]\nepochs = 2')
    plan = plan_comparison(["recipe=mine.toml", "arms=at,bounded", "seeds=4"])
    assert plan.recipe == "quickstart"
    assert {run.config.optim.epochs for run in plan.runs} == {2}
    assert [run.words[0] for run in plan.runs] == [
        "recipe=quickstart-at", "recipe=quickstart-bounded",
    ]  # fmt: skip


def test_the_default_arms_are_all_controls_with_at_as_reference(run: Run, fake: Path) -> None:
    plan = plan_comparison(["parallel=3"])
    assert plan.arms == (
        "at", "at-clean-forward", "mi-off", "random", "released", "paper", "bounded",
    )  # fmt: skip
    assert (plan.seeds, len(plan.runs), plan.parallel) == ((0, 1, 2), 21, 3)
    assert [(one.arm, one.seed) for one in plan.runs[6:8]] == [("bounded", 0), ("at", 1)]


def test_help_lists_recipes_arms_and_keys(run: Run) -> None:
    ended = run("--help", "all")
    assert ended.code == 0
    for name in (*BASE_RECIPES, *VARIANTS):
        assert f"\n  {name} " in ended.out
    assert "  attack.eps=0.1  (number >= 0)" in ended.out.splitlines()


def test_a_comparison_runs_in_one_process_at_a_time(run: Run, fake: Path) -> None:
    from filelock import FileLock

    fake.mkdir(parents=True)
    with FileLock(fake / ".lock"):
        ended = run("arms=at", "seeds=0")
    assert (ended.code, "another process runs the comparison" in ended.err) == (2, True)


def words_of(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.mark.slow
def test_real_runs_and_their_differences_are_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_folder(tmp_path, monkeypatch)
    tiny = words_of({key: value for key, value in TINY.items() if key != "tracking.enabled"})
    words = ["arms=at,mi-off", "seeds=0", "parallel=2", "name=mine", *tiny]
    for _ in range(2):  # the second one has nothing to add
        assert compare.main(words) == 0, capsys.readouterr()
    assert "mi-off has the weights of at, bit for bit, with 1 of 1" in capsys.readouterr().out
    by_name = {run.info.run_name: run for run in runs()}
    assert set(by_name) == {"mine", "mine/at-seed0", "mine/mi-off-seed0"}
    assert {run.info.status for run in by_name.values()} == {"FINISHED"}
    parent, child = by_name["mine"], by_name["mine/at-seed0"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    metrics = parent.data.metrics
    assert metrics["mi-off/test_robust_minus_at"] == 0
    assert metrics["at/test_robust"] == child.data.metrics["test/robust_acc"]
    assert history(parent.info.run_id, "runs_ended")[-1] == (2, 2)
    assert parent.data.params["arms"] == "at, mi-off"
    assert {"seed", "name"} & set(parent.data.params) == {"seed"}, "shared settings"
    assert "| mi-off | 1 |" in parent.data.tags["mlflow.note.content"]
    assert client().search_model_versions() == [], "a comparison registers no model"
    models = client().search_logged_models([parent.info.experiment_id])
    assert sorted(model.name for model in models) == ["best", "best", "last", "last"]


def test_metrics_of_a_comparison_name_arm_measure_and_reference(run: Run, fake: Path) -> None:
    plan = plan_comparison(["arms=at,random,paper", "seeds=0,1"])
    plan.folder.mkdir(parents=True)
    results = [
        result("at", 0, 0.80, 0.40), result("at", 1, 0.90, 0.50),
        result("random", 0, 0.80, 0.41), result("random", 1, 0.90, 0.53),
        RunResult("paper", 0, "diverged", step=7),
    ]  # fmt: skip
    state = tracked_state(plan, write_outcome(plan, results))
    assert state.metrics["at/test_robust"] == pytest.approx(0.45)
    assert state.metrics["random/test_robust_minus_at"] == pytest.approx(0.02)
    assert state.metrics["random/test_robust_minus_at_error"] == pytest.approx(0.01)
    assert not any(name.startswith("paper/") or "at_minus" in name for name in state.metrics)
    ended = {one.folder.name: (one.status, one.outcome) for one in state.runs}
    assert ended["at-seed1"] == ("FINISHED", "")
    assert ended["paper-seed0"] == ("FAILED", "Diverged at step 7.")


@pytest.mark.exhaustive
def test_mi_off_equals_at_bit_for_bit_over_seeds(run: Run, tmp_path: Path) -> None:
    tiny = words_of({**TINY, "probe.steps": 0})
    words = ["arms=at,mi-off,bounded", "seeds=0,1", "parallel=2", "name=real", *tiny]
    ended = run(*words)
    assert ended.code == 0, ended
    assert "mi-off has the weights of at, bit for bit, with 2 of 2 seeds" in ended.out
    folder = tmp_path / "runs" / "real"
    numbers = json.loads((folder / "comparison.json").read_text())
    assert numbers["mi_off_has_the_weights_of_at"] == {"0": True, "1": True}
    off = numbers["summary"][1]["differences"]
    assert off == {m: {"mean": 0.0, "error": 0.0, "num": 2} for m in ("clean", "robust", "val")}
    folders = [RunFolder(folder / name) for name in ("at-seed0", "at-seed1", "bounded-seed0")]
    assert not same_weights(folders[0], folders[1])
    assert not same_weights(folders[0], folders[2])
    journals = {path: path.read_bytes() for path in folder.glob("*/journal.jsonl")}
    assert len(journals) == 6
    assert run(*words).code == 0
    assert {path: path.read_bytes() for path in journals} == journals


@pytest.mark.exhaustive
def test_losses_that_are_not_finite_are_a_result(run: Run) -> None:
    tiny = words_of({**TINY, "probe.steps": 0, "optim.lr": 1e30, "model.name": "small-cnn"})
    ended = run("arms=at", "seeds=0", *tiny)
    assert ended.code == 0, ended
    assert "at seed 0: diverged at step " in ended.out
