"""Options of `python -m raymi.evaluate` and their refusals."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import raymi_command
from corrupted_files import write_corrupted_files
from tiny_runs import tiny_config

from raymi import evaluate
from raymi.attacks.catalogue import ATTACKS, Threat
from raymi.attacks.suites import ENSEMBLES, SUITES
from raymi.commands.evaluate.options import EvaluateOptions, evaluation_config, requested, takes
from raymi.commands.evaluate.plan import load_images, resolve_scaling, select_attacks
from raymi.config import Config
from raymi.data import DATASETS
from raymi.engine.validation import load_data
from raymi.errors import UserError
from raymi.hardware import available_cores
from raymi.overrides import leaves


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def problems(call: Any, *args: Any) -> list[str]:
    """Returns the lines of the error that a call raises."""
    with pytest.raises(UserError) as raised:
        call(*args)
    return str(raised.value).splitlines()


def config_of(words: list[str], *runs: Config | None) -> Config:
    return evaluation_config(requested(["model=a", *words]), runs or (tiny_config(),))


def test_the_default_is_the_standard_suite_on_all_test_images(empty_folder):
    request = requested(["model=mine"])
    options = request.options
    assert options.model == ("mine",)
    assert options.reported == ("pgd-40", "autoattack")
    assert (options.which, options.split, options.samples) == (None, "test", None)
    assert (options.checks, options.keep, options.json_file) == (200, False, None)
    assert options.results == empty_folder / "evaluations"
    assert request.settings == {}
    assert request.command == "python -m raymi.evaluate model=mine"


def test_all_options_are_parsed(empty_folder):
    words = [
        "model=runs/a,models:/b@champion, c.nets:net", "which=last", "attacks=fgsm,pgd-20@2eps",
        "split=val", "samples=50", "checks=0", "keep=true", "results=~/folder", "eps=0.5",
        "norm=l2", "seed=7", "workers=2", "--json", "a b.json",
    ]  # fmt: skip
    request = requested(words)
    options = request.options
    assert options.model == ("runs/a", "models:/b@champion", "c.nets:net")
    assert options.reported == ("fgsm", "pgd-20@2eps")
    assert (options.which, options.split, options.samples) == ("last", "val", 50)
    assert (options.checks, options.keep) == (0, True)
    assert options.results == Path.home() / "folder"
    assert options.json_file == empty_folder / "a b.json"
    assert request.settings == {
        "attack.eps": "0.5", "attack.norm": "l2", "seed": "7", "scaling.workers": "2",
    }  # fmt: skip
    assert request.command.endswith("--json 'a b.json'")
    split = subprocess.check_output(
        ["bash", "-c", f"printf '%s\\n' {request.command.partition('evaluate ')[2]}"], text=True
    )
    assert split.splitlines() == words


@pytest.mark.parametrize("words", [["--json", "o.json"], ["json=o.json"], ["--json=o.json"]])
def test_the_json_file_is_one_word_or_two(empty_folder, words):
    request = requested([*words, "model=a"])
    assert (request.options.json_file, request.options.model) == (empty_folder / "o.json", ("a",))


def test_surrogates_attack_with_pgd_by_default():
    assert requested(["model=a", "surrogate=b,c"]).options.reported == ("pgd-40",)
    assert requested(["model=a", "surrogate=b", "suite=quick"]).options.reported == ("pgd-20",)
    assert requested(["model=a", "surrogate=b", "attacks=fgsm"]).options.reported == ("fgsm",)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["modle=b"], ["unknown key 'modle': did you mean model?"]),
        (["sampels=3"], ["unknown key 'sampels': did you mean samples"]),
        (["suit=quick"], ["unknown key 'suit': did you mean suite or split?"]),
        (["qqq=1"], ["unknown key 'qqq' (--help all lists every key)"]),
        (["quick"], ["expected key=value, got 'quick': did you mean suite=quick?"]),
        (["autoattack"], ["did you mean suite=autoattack?"]),
        (["pgd=3"], ["unknown key 'pgd'"]),
        (["samples"], ["expected key=value, got 'samples': write samples=VALUE"]),
        (["model=b"], ["model is given 2 times, as a, b: keep one"]),
        (["seed=1", "seed=2"], ["seed is given 2 times, as 1, 2: keep one"]),
        (["eps=1/255", "attack.eps=0"], ["attack.eps is given 2 times"]),
        (["lr=x"], ["optim.lr decides nothing in an evaluation: leave it out (--help"]),
        (["mi.weight=1"], ["mi.weight decides nothing in an evaluation"]),
        (["data.flip=false"], ["data.flip decides nothing in an evaluation"]),
        (["data.generated=x.npz"], ["data.generated decides nothing in an evaluation"]),
        (["attack.steps=40"], ["attack.steps decides nothing in an evaluation: name the attack"]),
        (
            ["evaluation.max_samples=9"],
            ["evaluation.max_samples decides nothing in an evaluation: give sam"],
        ),
        (["samples=0"], ["samples: expected whole number >= 1 | none, got '0'"]),
        (["samples=1e3"], ["samples: expected whole number >= 1 | none, got '1e3'"]),
        (["samples=²"], ["samples: expected whole number >= 1"]),
        (["checks=-1"], ["checks: expected whole number >= 0, got '-1'"]),
        (["which=bst"], ["which: expected best | last | best-averaged | last-averaged, got 'bst'"]),
        (["split=train"], ["split: expected test | val, got 'train'"]),
        (["keep=perhaps"], ["keep: expected true | false, got 'perhaps'"]),
        (["surrogate=,"], ["surrogate: expected names with commas between them, got ','"]),
        (["surrogate=b,b"], ["surrogate: b is given twice"]),
        (["suite=standrad"], ["unknown suite 'standrad': did you mean standard"]),
        (["attacks=autoatack"], ["unknown attack 'autoatack': did you mean autoattack"]),
        (["attacks=pgd-0,xx"], ["unknown attack 'pgd-0': did you mean pgd-N", "attack 'xx'"]),
        (["attacks=standard"], ["standard is a suite: give suite=standard"]),
        (["attacks=fgsm,fgsm"], ["attacks: fgsm is given twice"]),
        (["attacks="], ["attacks: expected a value: attacks=A,B"]),
        (["attacks=pgd-9@2"], ["attack 'pgd-9@2': expected a radius such as @2eps, or @any"]),
        (["attacks=autoattack@2eps"], ["give its attacks, apgd-ce@..., apgd-t@..."]),
        (["attacks=fgsm", "suite=quick"], ["suite and attacks are both given: keep one"]),
        (["attacks=fgsn", "suite=quik"], ["are both given", "'quik'", "'fgsn'"]),
        (["surrogate=b", "suite=standard"], ["autoattack is an ensemble, and surrogates make"]),
        (["surrogate=b", "attacks=cw,ddnn"], ["unknown attack 'ddnn': did you mean ddn"]),
        (["--json", "no/x.json"], ["/no: make it, or give another file"]),
        (["json=."], ["is a folder: give a file in it"]),
        (["--json"], ["json: expected a value: json=FILE"]),
        (["--json", "keep=true"], ["json: expected a value: json=FILE"]),
        (["results=file/below"], ["file is not a folder: give another one"]),
        (["data.name=digist"], ["data.name: unknown data set 'digist': did you mean digits"]),
        (["norm=l3"], ["attack.norm: expected linf | l2, got 'l3'"]),
        (["eps=x"], ["attack.eps: expected number >= 0, got 'x'"]),
        (["norm=linf", "eps=8"], ["did you mean eps=8/255?"]),
        (["workers=none"], ["scaling.workers: expected whole number >= 1"]),
        (["evaluation.block=0"], ["evaluation.block: expected whole number >= 1, got '0'"]),
    ],
)
def test_each_wrong_word_is_refused_with_a_line(empty_folder, words, parts):
    (empty_folder / "file").touch()
    lines = problems(requested, ["model=a", *words])
    assert [part for part in parts if not any(part in line for line in lines)] == []
    assert len(lines) == len(parts)


def test_all_problems_are_in_one_message():
    words = ["suite=x", "samples=0", "lr=1", "seed=x", "split=x", "ep=1", "--json", "no/x"]
    lines = problems(requested, words)
    assert len(lines) == 8
    for part in ("model=A,B is needed", "suite", "samples", "optim.lr", "seed", "split", "no"):
        assert any(part in line for line in lines)


@pytest.mark.parametrize("words", [[], ["model="], ["model=,"]])
def test_a_model_is_needed(words):
    (line,) = problems(requested, words)
    assert line.startswith("model")


def test_folders_without_write_permission_are_refused(empty_folder, monkeypatch):
    (empty_folder / "fixed").mkdir()  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name != "fixed")
    lines = problems(requested, ["model=a", "results=fixed/x", "json=fixed/x.json"])
    assert [line.partition(" into ")[0] for line in lines] == [
        "results: no permission to write", "json: no permission to write",
    ]  # fmt: skip


def test_the_run_supplies_data_and_threat():
    run = tiny_config({"attack.norm": "l2", "attack.eps": 2.0, "data.generated": "gone.npz"})
    config = config_of([], run)
    assert (config.attack.norm, config.attack.eps) == ("l2", 2.0)
    assert (config.data.name, config.data.limit) == ("digits", 200)
    assert config.data.generated is None, "not needed, and perhaps deleted"
    assert config_of(["eps=3"], run).attack.eps == 3.0
    assert config_of(["data.limit=50"], run).data.limit == 50
    assert config.model == Config.model_validate({}).model


def test_another_data_set_does_not_inherit_the_root():
    run = tiny_config({"data.root": "/of/digits", "data.image_size": 8})
    assert config_of([], run).data.root is not None
    other = config_of(["data.name=mnist"], run).data
    assert (other.name, other.root, other.image_size) == ("mnist", None, 8)


def test_without_a_run_data_are_required_and_the_threat_has_a_default():
    (line,) = problems(config_of, [], None)
    assert line.startswith("data.name=NAME is needed")
    assert line.endswith(", ".join(DATASETS))
    config = config_of(["data.name=digits"], None)
    assert (config.attack.norm, config.attack.eps) == ("linf", 8 / 255)
    assert problems(config_of, ["data.name=digits", "eps=8"], None) == [
        "attack: eps must be at most 1 for linf, got 8: images are in [0, 1], did you mean "
        "eps=8/255?"
    ]


@pytest.mark.parametrize("run", [None, tiny_config({"attack.eps": 8 / 255})])
def test_another_norm_needs_a_radius(run):
    assert problems(config_of, ["norm=l2", "data.name=digits"], run) == [
        "attack.norm=l2 needs a radius: give attack.eps=..., as 8/255 is meant for linf"
    ]
    assert config_of(["norm=l2", "eps=0.5", "data.name=digits"], run).attack.norm == "l2"
    assert config_of(["norm=linf", "data.name=digits"], run).attack.eps == 8 / 255


def test_settings_that_differ_between_runs_are_listed():
    first = tiny_config({"attack.eps": 8 / 255})
    second = tiny_config(
        {"attack.norm": "l2", "attack.eps": 4 / 255, "data.limit": 100, "data.flip": True}
    )
    assert problems(config_of, [], first, None, second) == [
        "the models' runs differ in data.limit (200, 100): say which, data.limit=...",
        "the models' runs differ in attack.norm (linf, l2): say which, attack.norm=...",
        "the models' runs differ in attack.eps (8/255, 4/255): say which, attack.eps=...",
    ]
    assert len(problems(config_of, ["eps=0.5"], first, second)) == 2
    given = config_of(["eps=0.5", "norm=l2", "data.limit=60"], first, second)
    assert (given.attack.norm, given.attack.eps, given.data.limit) == ("l2", 0.5, 60)


def test_runs_must_share_validation_images_that_are_attacked():
    runs = tiny_config(), tiny_config({"data.split_seed": 1, "data.val_fraction": 0.2})
    assert config_of([], *runs)
    lines = problems(config_of, ["split=val"], *runs)
    assert [line.partition("differ in ")[2].partition(" ")[0] for line in lines] == [
        "data.val_fraction", "data.split_seed",
    ]  # fmt: skip


def test_models_of_runs_may_differ():
    wide = tiny_config({"model.name": "wrn-28-10", "model.depth": None, "model.width": None})
    assert config_of(["model.name=small-cnn", "model.depth=4"], wide, tiny_config())


@pytest.mark.parametrize(("words", "num"), [([], 200), (["samples=7"], 7), (["samples=9999"], 200)])
def test_samples_are_an_even_selection_and_at_most_all(words, num):
    run = tiny_config({"data.limit": 200})
    every = load_data(run).test
    request = requested(["model=a", *words])
    images, name = load_images(request, evaluation_config(request, [run]))
    expected = "digits-test" if num == 200 else "digits-test-7"
    assert (len(every), len(images), name) == (200, num, expected)
    assert images.places.tolist() == [every.places[k * 200 // num] for k in range(num)]
    assert images.labels.tolist() == [every.labels[k * 200 // num] for k in range(num)]


def test_split_selects_the_images():
    run = tiny_config()
    request = requested(["model=a", "split=val"])
    images, name = load_images(request, evaluation_config(request, [run]))
    assert (images.digest, name) == (load_data(run).val.digest, "digits-val")


def test_shared_images_of_splits_give_a_warning(empty_folder):
    image = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    for part in ("train", "test"):
        np.savez(empty_folder / f"{part}.npz", image=image, label=np.arange(40) % 2)
    data = {"data.name": "npz", "data.root": str(empty_folder), "data.limit": None}
    request = requested(["model=a"])
    with pytest.warns(UserWarning, match="36 of 40 test images are also in train"):
        load_images(request, evaluation_config(request, [tiny_config(data)]))


def attacks(words: list[str], num_classes: int = 10, **run: Any) -> list[str]:
    request = requested(["model=a", *words])
    config = evaluation_config(request, [tiny_config({f"attack.{k}": v for k, v in run.items()})])
    every = load_data(config).test
    images = replace(every, class_names=every.class_names[:num_classes])
    return [one.name for one in select_attacks(request, config, images)]


def test_attacks_must_support_the_threat_and_the_data():
    assert attacks(["suite=paper-linf"]) == list(SUITES["paper-linf"])
    assert attacks(["suite=paper-l2"], norm="l2", eps=0.5) == list(SUITES["paper-l2"])
    remedy = "choose others (suite=NAME or attacks=A,B), or another threat (attack.norm)"
    assert problems(attacks, ["suite=paper-l2"]) == [
        "cw is an attack in l2, not in linf", "ddn is an attack in l2, not in linf", remedy,
    ]  # fmt: skip
    assert problems(attacks, ["attacks=ti-dim", "norm=l2", "eps=0.5"]) == [
        "ti-dim is an attack in linf, not in l2", remedy,
    ]  # fmt: skip


@pytest.mark.parametrize("words", [[], ["suite=standard"], ["suite=autoattack"]])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_are_refused_autoattack_with_the_suite_for_them(words, num_classes):
    assert problems(attacks, words, num_classes) == [
        f"apgd-t needs at least 4 classes, got {num_classes}",
        "choose others (suite=few-classes, suite=NAME or attacks=A,B), or another threat "
        "(attack.norm)",
    ]
    assert attacks(["suite=few-classes"], num_classes) == ["pgd-40", "few-classes"]


def test_corruptions_are_found_in_a_folder(empty_folder):
    images = load_data(tiny_config({"data.limit": None})).test  # also where a run has fewer
    folder = write_corrupted_files(images, empty_folder / "c")
    words = ["attacks=pgd-3,corruptions", f"corruptions={folder}"]
    expected = [
        f"corruption-{name}-{k}" for name in ("contrast", "gaussian_noise") for k in range(1, 6)
    ]
    assert attacks(words) == ["pgd-3", *expected]
    assert attacks(["suite=corruptions", "corruptions=c"]) == expected
    (folder / "labels.npy").unlink()
    (line,) = problems(attacks, words)
    assert line.startswith("corruptions: no file ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["suite=corruptions"], "corruptions=FOLDER is needed: the folder with labels.npy and"),
        (["suite=corruptions", "corruptions="], "corruptions: expected "),
        (["suite=corruptions", "corruptions=c"], "corruptions: no folder "),
        (["corruptions=c"], "corruptions=FOLDER is given without its suite: add suite=corrupt"),
        (
            ["suite=corruptions", "corruptions=c", "surrogate=b"],
            "corruptions are the same images for all models: leave out surrogate",
        ),
        (
            ["suite=corruptions", "corruptions=c", "split=val"],
            "corruptions are of test images: leave out split=val",
        ),
    ],
)
def test_corruptions_need_a_folder_and_test_images(words, line):
    if "no folder" not in line:
        Path("c").mkdir()
    (found,) = problems(requested, ["model=a", *words])
    assert found.startswith(line)


@pytest.mark.parametrize(("threat", "usual"), [(("linf", 0.0), "8/255"), (("l2", 0.0), "0.5")])
def test_a_radius_of_zero_is_refused(threat, usual):
    (line,) = problems(attacks, [f"norm={threat[0]}", "eps=0"])
    assert line.endswith(f"give eps={usual}, say")
    assert Threat(*threat).eps == 0


@pytest.mark.parametrize(
    ("words", "cores", "gpus", "workers"),
    [
        ([], 6, 0, 6),
        (["cpus_per_worker=4"], 6, 0, 1),
        ([], 6, 2, 2),
        (["use_gpu=false"], 6, 2, 6),
        (["workers=3"], 6, 2, 3),
    ],
)
def test_the_default_workers_use_the_whole_machine(monkeypatch, words, cores, gpus, workers):
    place = "raymi.ray_backend.session"
    monkeypatch.setattr(f"{place}.available_cores", lambda: cores)
    monkeypatch.setattr(f"{place}.available_gpus", lambda: list(range(gpus)))
    request = requested(["model=a", *words])
    scaling = resolve_scaling(request, evaluation_config(request, [tiny_config()]))
    assert scaling.workers == workers


def test_more_workers_than_cores_are_refused(monkeypatch):
    request = requested(["model=a", f"workers={available_cores() + 1}"])
    (line,) = problems(resolve_scaling, request, evaluation_config(request, [tiny_config()]))
    assert f"this machine has {available_cores()}: ask for fewer" in line
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # a cluster of unknown size
    assert resolve_scaling(request, evaluation_config(request, [tiny_config()]))


def test_in_a_job_the_number_of_workers_is_elastic(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    request = requested(["model=a"])
    assert resolve_scaling(request, evaluation_config(request, [tiny_config()])).elastic


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["model=mine"], "no file 'mine', and no run 'mine'"),
        (["model=torch.nn:Identity"], "data.name=NAME is needed"),
        (["model=mine", "lr=1", "suite=x"], "unknown suite 'x'"),
    ],
)
def test_wrong_words_exit_with_2_and_write_nothing(empty_folder, capsys, words, part):
    assert evaluate.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert part in err
    assert list(empty_folder.iterdir()) == []


def test_help_in_a_pipe_lists_everything_on_whole_lines(capsys):
    assert evaluate.main(["--help", "all"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].startswith("usage: python -m raymi.evaluate model=")
    for name in (*SUITES, *ENSEMBLES, *ATTACKS, *DATASETS):
        assert any(line.startswith(f"  {name} ") for line in lines), name
    for key, _ in leaves():
        assert takes(key) == any(line.startswith(f"  {key}=") for line in lines), key
    for key, _ in leaves(EvaluateOptions):
        assert any(line.startswith(f"  {key}=") for line in lines), key


def test_help_fits_a_terminal_of_80_columns(empty_folder):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "raymi.evaluate", "--help", "all"],
        stdout=theirs,
        env=raymi_command.environment(COLUMNS="80", TERM="xterm"),
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # its end, on Linux
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(raymi_command.TIMEOUT) == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", shown.decode())
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "paper-l2" in text
