"""Command line of `python -m raymi.train`: output and exit codes, without Ray."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from raymi_command import Ended

from raymi import train
from raymi.commands.train import options as train_options
from raymi.commands.train import run as train_run
from raymi.config import Config
from raymi.errors import StorageError, UserError
from raymi.mi.forms.registry import forms as mi_forms
from raymi.overrides import leaves, split_words
from raymi.ray_backend.train_driver import RunFailed
from raymi.recipes import BASE_RECIPES, RECIPES, VARIANTS, build_config
from raymi.runs.journal import Journal
from raymi.runs.run_folder import RunFolder
from raymi.signals import Stopped

Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in an empty folder; `launch` raises unless a test replaces it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a user's model adds the current folder
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAYMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(train_run, "launch", _never)

    def run(*words: str) -> Ended:
        code = train.main(list(words))
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


def _never(*_: object, **__: object) -> None:
    raise AssertionError("Ray must not be started")


def finished_run(folder: Path, **changes: Any) -> RunFolder:
    made = RunFolder(folder)
    folder.mkdir(parents=True)
    made.write_config(build_config("quickstart", changes))
    made.write_about({"id": "x", "recipe": "quickstart", "command": "python -m raymi.train"})
    return made


def test_help_lists_every_key_with_default_and_documentation(run: Run) -> None:
    code, out, _ = run("--help", "all")
    assert code == 0
    lines = out.splitlines()
    for key, field in leaves():
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f"  {key}=")]
        assert lines[at + 1].strip() == " ".join((field.description or "").split())
    assert "  attack.eps=0.1  (number >= 0)" in lines, "of the quickstart"
    forms = " | ".join((*mi_forms(), "module:name"))
    assert f"  mi.form=bounded  ({forms})" in lines


def test_help_lists_recipes_variants_data_sets_and_models(run: Run) -> None:
    out = run("-h", "all").out
    assert "\nvariants, added to a recipe's name as in quickstart-at (recipe=NAME)\n" in out
    for name in (
        *BASE_RECIPES,
        *VARIANTS,
        "cifar100",
        "tiny-imagenet",
        "wrn-34-10",
        "module:function",
    ):
        assert f"\n  {name} " in out


def test_help_is_one_screen_with_the_values_of_the_usual_recipe(run: Run) -> None:
    lines = run("--help").out.splitlines()
    assert len(lines) < 40
    assert any(line.startswith("  optim.epochs=15 ") for line in lines)
    assert any(line.startswith("recipes: quickstart, cifar10-cpu") for line in lines)
    assert any("--help all" in line for line in lines)


def test_help_of_a_key_has_type_value_documentation_and_names(run: Run) -> None:
    out = run("--help", "lr").out
    assert out.startswith("  optim.lr=0.1  (number > 0)\n      Peak learning rate")
    assert "\n  wrn-34-10 " in run("--help", "model.name").out
    assert "optim.epochs=100 " in run("--help", "epochs", "recipe=paper-cifar10-linf").out
    ended = run("--help", "lrr")
    assert ended.code == 2
    assert "optim.lr" in ended.err


def test_help_loads_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys; from raymi.train import main; status = main(['--help'])\n"
        "sys.exit(status or len({'ray', 'mlflow', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


def test_dry_run_checks_no_hardware_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    ended = run("--dry-run", "workers=64", "data.name=folder", "data.root=/nowhere")
    assert (ended.code, ended.err) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_words_that_reproduce_the_run(run: Run) -> None:
    words = ["recipe=quickstart", "eps=7/255", "mi.weight=2", "experiment=two words", "--dry-run"]
    first = run(*words)
    printed = shlex.split(first.out)
    assert run(*printed, "--dry-run") == first
    parsed = split_words(printed, train_options.TrainOptions)
    assert parsed.own == {"recipe": "quickstart"}
    assert build_config("quickstart", parsed.settings).tracking.experiment == "two words"


def test_dry_run_of_a_recipe_file_prints_words_that_need_no_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "quickstart-at"\n[optim]\nepochs = 2')
    ended = run("recipe=mine.toml", "--lr", "0.3", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "recipe=quickstart-at"
    assert {"optim.epochs=2", "optim.lr=0.3", "mi.weight=0"} <= set(lines)
    (tmp_path / "mine.toml").unlink()
    assert run(*lines, "--dry-run") == ended


def test_own_photos_do_not_train_the_recipe_of_the_digits(run: Run) -> None:
    lines = run("data.name=folder", "data.root=photos", "--dry-run").out.splitlines()
    assert lines[0] == "recipe=photos"
    assert "data.image_size=64" in lines
    code, _, err = run("data.root=photos", "--dry-run")
    assert code == 2
    assert "the digits of quickstart read no files; add data.name=folder" in err
    code, _, err = run("data.name=svhn", "--dry-run")
    assert code == 2
    assert "no recipe is made for data.name=svhn" in err


@pytest.mark.parametrize("name", ["quickstart", "photos", "paper-cifar10-vgg19-at"])
def test_help_of_a_recipe_has_hardware_time_accuracy_and_command(run: Run, name: str) -> None:
    code, out, _ = run("--help", f"recipe={name}")
    assert code == 0
    recipe = RECIPES[name]
    for key in ("hardware", "time", "accuracy"):
        assert re.search(rf"^  {key} +{re.escape(getattr(recipe, key))}$", out, re.MULTILINE)
    assert f"python -m raymi.train recipe={name}\n" in out
    assert f"  data.name={build_config(name).data.name}\n" in out or name == "quickstart"


def test_all_invalid_words_and_missing_inputs_are_listed_together(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run("lrr=1", "eps=8", "data.name=folder", "data.root=/nope", "workers=33", "out=file/x")
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert lines[0].startswith("error: unknown key 'lrr': did you mean optim.lr")
    assert [line for line in lines if "Traceback" in line] == []
    text = ended.err
    for part in (
        "did you mean eps=8/255?",
        "scaling.workers=33 with 1 CPU each needs 33 CPUs",
        "data.root=/nope does not exist",
        "set out=FOLDER to one that is writable",
    ):
        assert part in text
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["recipe=nope"], ["unknown recipe 'nope'", "quickstart"]),
        (["recipe=quickstart-trade"], ["did you mean quickstart-trades?"]),
        (["eps=-1"], ["attack.eps: expected number >= 0, got '-1'"]),
        (["workers=50"], ["scaling.workers=50", "this machine has"]),
        (["data.name=folder"], ["needs data.root"]),
        (["crop_padding=16", "image_size=16"], ["smaller than the images, got 16", "16x16"]),
        (["data.name=folder", "data.root=/nope"], ["data.root=/nope does not exist"]),
        (
            ["data.name=cifar10", "data.root=empty", "download=false"],
            ["cifar-10-batches-py", "/empty"],
        ),
        (["model.name=resnet"], ["unknown model 'resnet'", "did you mean resnet18"]),
        (["model.name=no_module:net"], ["cannot import module 'no_module'"]),
        (["model.name=json:net"], ["no function 'net'"]),
        (["model.name=json:dumps"], ["num_classes= and image_size="]),
        (["model.name=:net"], ["must read package.module:function"]),
        (["name=taken"], ["taken exists already", "choose another name"]),
        (["resume=x", "recipe=quickstart"], ["either recipe or resume"]),
        (["--dryrun"], ["did you mean --dry-run"]),
    ],
)
def test_bad_input_is_one_clear_error_and_exit_code_2(
    run: Run, tmp_path: Path, words: Sequence[str], parts: Sequence[str]
) -> None:
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert [part for part in parts if part not in err] == []
    assert "Traceback" not in err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["taken"]


def test_resume_of_an_unknown_run_lists_the_newest_ones(run: Run, tmp_path: Path) -> None:
    for seconds, name in enumerate(("old", "new")):
        made = finished_run(tmp_path / "runs" / name)
        os.utime(made.config, (seconds, seconds))
    code, _, err = run("resume=lost")
    assert code == 2
    assert f"no run 'lost' in {tmp_path}/runs; the newest runs there: new, old" in err


def test_resume_refuses_settings_that_decide_the_result(run: Run, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs" / "mine")
    code, _, err = run(
        "resume=mine", "lr=0.2", "precision=bf16", "sync_batchnorm=false", "data.name=mnist"
    )
    assert code == 2
    assert err.startswith(
        "error: data.name, optim.lr, scaling.precision, scaling.sync_batchnorm cannot change when a"
    )
    assert "scaling.workers" in err.partition("change only")[2]


def test_resume_accepts_settings_that_leave_the_results_unchanged(run: Run, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs" / "mine", attack={"eps": 0.07})
    words = ["workers=1", "keep=5", "eps=0.07", "mi.form=bounded", "--dry-run"]
    for name in ("mine", "runs/mine", str(tmp_path / "runs" / "mine")):
        ended = run(f"resume={name}", *words)
        assert ended.code == 0, ended.err
        lines = ended.out.splitlines()
        for line in ("scaling.workers=1", "checkpoint.keep=5", "attack.eps=0.07"):
            assert line in lines


def test_resume_finds_a_run_in_the_folder_out(run: Run, tmp_path: Path) -> None:
    finished_run(tmp_path / "elsewhere" / "mine")
    assert run("resume=mine", "--dry-run").code == 2
    assert run("resume=mine", "out=elsewhere", "--dry-run").code == 0


def test_damaged_configuration_of_a_run_is_one_clear_error(run: Run, tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "runs" / "mine")
    folder.config.write_text('{"optim": {"no_such_key": 1}}')
    code, _, err = run("resume=mine")
    assert (code, "Traceback" in err) == (2, False)
    assert "of another version of raymi" in err


def test_own_model_is_found_in_the_current_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own_net_of_test.py").write_text("def net(num_classes, image_size): ...\n")
    code, _, err = run("model.name=own_net_of_test:net", "name=.no")
    assert code == 2
    assert "own_net_of_test" not in err


def fake_launch(outcome: BaseException | None) -> Callable[..., None]:
    """Returns a replacement of `launch` without Ray: writes the journal of a run, then ends."""

    def launch(config: Config, folder: RunFolder, *_: object, **__: object) -> None:
        folder.warnings.write_text("MI dominates\nMI dominates\n")
        position = {"epoch": config.optim.epochs, "step": 0, "global_step": 9}
        accuracy = {"clean": 0.9, "robust": 0.6, "num": 100}
        attack = {"norm": "linf", "eps": 0.1, "alpha": 0.025, "steps": 40}
        fields = {"of_epoch": 3, "attack": attack, **position, **accuracy}
        journal = Journal(folder.journal)
        for which in ("last", "best"):
            journal.write("evaluation", which=which, chosen=which == "best", **fields)
        journal.close()
        if outcome is not None:
            raise outcome

    return launch


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (None, 0, "60.0% (50.2-69.1)"),
        (Stopped(2), 130, "stopped by SIGINT; to continue: python -m raymi.train resume=mine"),
        (Stopped(15), 143, "stopped by SIGTERM; to continue: python -m raymi.train resume=mine"),
        (KeyboardInterrupt(), 130, "to continue: python -m raymi.train resume=mine"),
        (RunFailed("a [/b] broke"), 1, "the run failed: a [/b] broke"),
        (UserError("corrupt image x.png"), 2, "corrupt image x.png"),
    ],
)
def test_exit_code_depends_on_the_end_of_the_run(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: BaseException | None,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(train_run, "launch", fake_launch(outcome))
    ended = run("name=mine", "tracking.enabled=false", "workers=1")
    assert ended.code == code
    assert message in ended.out + ended.err
    assert (ended.out + ended.err).count("warning: MI dominates") == 1
    folder = RunFolder(tmp_path / "runs" / "mine")
    assert folder.read_config() == build_config(
        "quickstart",
        {"name": "mine", "tracking": {"enabled": False}, "scaling": {"workers": 1}},
    )
    about = json.loads(folder.about.read_text())
    assert about["command"] == "python -m raymi.train name=mine tracking.enabled=false workers=1"
    assert about["recipe"] == "quickstart"


def test_defect_of_raymi_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_run, "launch", fake_launch(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        run("name=mine", "tracking.enabled=false", "workers=1")


def test_command_to_continue_has_the_path_of_a_run_outside_of_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_run, "launch", fake_launch(Stopped(2)))
    ended = run("name=mine", "out=my runs", "tracking.enabled=false", "workers=1")
    command = ended.out.partition("to continue: ")[2].splitlines()[0]
    *_, word = shlex.split(command)
    assert word == f"resume={tmp_path}/my runs/mine"
    assert run(word, "--dry-run").code == 0


def test_unhandled_ctrl_c_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_options, "input_problems", lambda *_, **__: interrupted())
    assert run() == Ended(130, "", "interrupted\n")


def test_full_disk_is_reported_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/mine/tracking.json")

    monkeypatch.setattr(train_run, "launch", full)
    ended = run("name=mine", "tracking.enabled=false", "workers=1")
    assert ended.code == 1
    expected = "cannot write /runs/mine/tracking.json (No space left on device): free space there"
    assert ended.err == f"error: {expected}\n"


def test_storage_failure_is_reported_with_the_command_to_continue(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageError("cannot write the journal")

    monkeypatch.setattr(train_run, "launch", full)
    ended = run("name=mine", "tracking.enabled=false", "workers=1")
    assert ended.code == 1
    assert "the run failed: cannot write the journal\n" in ended.out
    assert "to continue: python -m raymi.train resume=mine" in ended.out
