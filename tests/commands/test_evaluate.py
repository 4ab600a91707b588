"""The command `raymi.evaluate` in one process, without Ray."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from corrupted_files import write_corrupted_files
from tiny_runs import tiny_config
from torch import nn

from raymi import evaluate
from raymi.attacks.corruptions import sha256
from raymi.data import load_splits
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.runs.run_folder import RunFolder
from raymi.terminal.evaluation import EvaluationDisplay

ALONE = ("scaling.workers=1", "tracking.enabled=false")
SMALL = (*ALONE, "samples=40", "checks=0", "block=16", "attacks=pgd-3,fgsm")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two finished runs of raymi, "runs/a" and "runs/b"."""
    folder = tmp_path_factory.mktemp("home")
    for seed, name in enumerate("ab"):
        run = RunFolder(folder / "runs" / name)
        run.path.mkdir(parents=True)
        run.write_config(config := tiny_config({"seed": seed}))
        assert train(config, LocalContext("cpu"), run).finished
    return folder


@pytest.fixture
def home(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def command(capsys, *words):
    """Runs the command; returns exit code, stdout and stderr."""
    code = evaluate.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def numbers(path: Path):
    return {
        (model["model"], result["name"]): (result["right"], result["num"])
        for model in json.loads(path.read_text())["models"]
        for result in model["results"]
    }


def test_a_run_its_weights_and_a_function_have_the_same_numbers(home, tmp_path, capsys):
    code, out, _ = command(capsys, "model=a", *SMALL, "--json", str(tmp_path / "run.json"))
    assert code == 0
    assert "a-best: 40 images of digits-test-40, L_inf eps 0.2" in out
    assert "no sign of false robustness" in out
    code, out, _ = command(capsys, "model=runs/a/best.safetensors", *SMALL)
    assert code == 0
    assert "3 of 3 blocks from disk" in out, "the same network: no step runs again"
    (home / "theirs.py").write_text(
        "import torch\n"
        "from raymi.evaluation.weight_files import read_weights\n"
        "from raymi.models import build_model\n"
        "from pathlib import Path\n"
        "def net(num_classes):\n"
        "    net = build_model('small-cnn', num_classes=num_classes, image_size=8, width=0.5,\n"
        "                      depth=4, mean=[0] * 3, std=[1] * 3)\n"
        "    net.load_state_dict(read_weights(Path('runs/a/best.safetensors')))\n"
        "    return net\n"
    )
    more = ("data.name=digits", "data.limit=200", "eps=0.2", f"json={tmp_path / 'theirs.json'}")
    code, out, err = command(capsys, "model=theirs:net", *SMALL, *more)
    assert code == 0, err
    own, theirs = numbers(tmp_path / "run.json"), numbers(tmp_path / "theirs.json")
    assert list(own.values()) == list(theirs.values())
    assert {num for _, num in own.values()} == {40}


def test_json_has_all_numbers_of_models_and_surrogates(home, tmp_path, capsys):
    place = tmp_path / "all.json"
    words = ("model=a,runs/b/last.safetensors", "surrogate=a", *SMALL[:-1], "attacks=pgd-3")
    code, out, err = command(capsys, *words, f"results={tmp_path}", f"json={place}")
    assert code == 0, err
    assert "transfer of pgd-3" in out
    assert "McNemar" in out
    numbers = json.loads(place.read_text())
    assert [model["model"] for model in numbers["models"]] == ["a-best", "b-last"]
    assert {pair["attack"] for pair in numbers["differences"]} == {"clean", "pgd-3"}
    (matrix,) = numbers["transfer"]
    assert matrix["surrogates"]["a-best"]["a-best"] == matrix["white_box"]["a-best"]
    assert matrix["clean"].keys() == matrix["white_box"].keys() == {"a-best", "b-last"}
    for model in numbers["models"]:
        assert (Path(model["folder"]) / "outcomes.parquet").is_file()
        assert json.loads((Path(model["folder"]) / "report.json").read_text()) == model


def test_corruptions_are_reported_by_severity(home, tmp_path, capsys):
    images = load_splits("digits").test
    folder = write_corrupted_files(images, tmp_path / "digits-c")
    words = ["model=a", *SMALL[:-1], "suite=corruptions", f"corruptions={folder}"]
    words.append(f"results={tmp_path / 'results'}")
    code, out, err = command(capsys, *words)
    assert code == 0, err
    assert "accuracy by corruption and severity" in out
    assert re.search(r"gaussian_noise( +│ +[\d.]+%){6} +│ +[\d.]+-[\d.]+%", out)
    (first,) = (tmp_path / "results").iterdir()
    rows = pq.read_table(first / "outcomes.parquet").to_pylist()
    report = json.loads((first / "report.json").read_text())
    results = {one["name"]: one for one in report["results"]}
    right = defaultdict(list)
    for row in rows:
        right[row["ensemble"]].append(row["prediction"] == row["label"])
    for name, answers in right.items():
        assert len(answers) == 40, "misclassified images, too"
        assert results[name]["right"] == sum(answers)
    names = [f"corruption-{name}-{k}" for name in ("contrast", "gaussian_noise") for k in "12345"]
    assert right.keys() == {"clean", *names}
    mean = sum(sum(right[name]) for name in names) / 400
    assert results["corruptions"]["accuracy"] == mean
    assert results["corruption-contrast"]["num"] == 200
    assert f"mean error {100 * (1 - mean):.1f}% over 10 sets of images" in out
    code, out, _ = command(capsys, *words)
    assert code == 0
    assert "30 of 30 blocks from disk" in out, "no step runs again"
    np.save(folder / "contrast.npy", np.load(folder / "contrast.npy") ^ 1)
    sha256.cache_clear()
    assert command(capsys, *words)[0] == 0
    assert len(list((tmp_path / "results").iterdir())) == 2, "other files, another folder"


THEIRS = """
def attack(model, x, y, *, eps, norm, generator):
    return (x + FACTOR * eps).clamp(0, 1)
"""


def test_attacks_of_the_user_are_reported_or_refused(home, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, factor in (("honest", "1"), ("cheating", "2")):
        (tmp_path / f"{name}_attack.py").write_text(THEIRS.replace("FACTOR", factor))
    words = ("model=a", *SMALL[:-1], f"results={tmp_path / 'results'}")
    code, out, err = command(capsys, *words, "attacks=pgd-3,honest_attack:attack")
    assert code == 0, err
    assert "honest_attack:attack" in out
    code, out, err = command(capsys, *words, "attacks=pgd-3,cheating_attack:attack")
    assert code == 2
    assert err.count("\n") == 1
    assert "attack 'cheating_attack:attack' must return x_adv (4, 3, 8, 8), got an image at" in err
    assert "blocks" not in out, "nothing was attacked"


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_have_a_suite_of_their_own(num_classes, home, tmp_path, capsys):
    digits = load_splits("digits")
    for part, images in (("train", digits.train), ("test", digits.test)):
        few = images.labels < num_classes
        np.savez(
            tmp_path / f"{part}.npz",
            image=images.images[few].numpy(),
            label=images.labels[few].numpy(),
        )
    words = [
        "model=test_evaluate:linear", "data.name=npz", f"data.root={tmp_path}", "eps=0.2", *ALONE,
        "samples=12", "checks=0", f"results={tmp_path / 'results'}",
    ]  # fmt: skip
    code, _, err = command(capsys, *words)
    assert code == 2
    assert "suite=few-classes" in err
    code, out, err = command(capsys, *words, "suite=few-classes", f"json={tmp_path / 'out.json'}")
    assert code == 0, err
    assert "few-classes is weaker than AutoAttack" in out
    assert "autoattack" not in out
    (model,) = json.loads((tmp_path / "out.json").read_text())["models"]
    clean, pgd, few = model["results"]
    assert few["note"].endswith("without apgd-t, which needs 4 classes")
    assert few["right"] <= pgd["right"] <= clean["right"]
    assert few["right"] < clean["right"]


def linear(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, num_classes))


class Quantised(nn.Module):
    """Network without gradients, so attacks by gradients fail."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))

    def forward(self, x):
        return self.net((x * 8).round() / 8)


def quantised():
    return Quantised()


def probabilities():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10), nn.Softmax(dim=1))


def detached():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :10]

    return Detached()


FOREIGN = ("data.name=digits", "eps=0.1")


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("quantised", "doubtful: gradients of the margin that vanish"),
        ("probabilities", "doubtful: probabilities as outputs"),
    ],
)
def test_suspicious_findings_are_printed_twice(name, sign, home, tmp_path, capsys):
    words = (f"model=test_evaluate:{name}", *FOREIGN, *SMALL, f"results={tmp_path}")
    code, out, err = command(capsys, *words)
    assert code == 0, err
    assert sign in out
    assert out.count(sign) == 2, "during the evaluation, and with the table"


def test_outputs_outside_of_autograd_are_attacked_by_queries_alone(home, tmp_path, capsys):
    words = ("model=test_evaluate:detached", *FOREIGN, *ALONE, "samples=20", f"results={tmp_path}")
    code, _, err = command(capsys, *words, "attacks=pgd-3")
    assert code == 2
    assert "do not depend on the images as autograd sees it, and pgd-3 need gradients" in err
    code, out, err = command(capsys, *words, "attacks=square-1000", "checks=10")
    assert code == 0, err
    assert "doubtful: gradients of the margin that vanish" in out


def test_a_network_is_not_compared_with_itself(home, capsys):
    code, _, err = command(capsys, "model=a,runs/a/best.safetensors", *SMALL)
    assert code == 2
    assert "a and runs/a/best.safetensors are the same network" in err


def test_after_ctrl_c_the_same_command_returns_the_same_numbers(
    home, tmp_path, capsys, monkeypatch
):
    whole = tmp_path / "whole.json"
    words = ("model=a", *SMALL)
    command(capsys, *words, f"results={tmp_path / 'whole'}", f"json={whole}")
    steps = []

    def interrupt(self, step, outcome, cached):
        steps.append(cached)
        if len(steps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(EvaluationDisplay, "on_step", interrupt)
    cut = (*words, f"results={tmp_path / 'cut'}", f"json={tmp_path / 'cut.json'}")
    code, out, _ = command(capsys, *cut)
    assert code == 130
    assert "stopped by SIGINT; recorded outcomes are in" in out
    assert f"to continue: python -m raymi.evaluate model=a {SMALL[0]}" in out
    steps.clear()
    monkeypatch.setattr(
        EvaluationDisplay, "on_step", lambda self, step, out, cached: steps.append(cached)
    )
    assert command(capsys, *cut)[0] == 0
    assert sum(steps) == 5
    assert len(steps) == 9
    assert numbers(tmp_path / "cut.json") == numbers(whole)


def test_an_error_of_the_network_is_one_message(home, tmp_path, capsys):
    (home / "failing.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        if len(x) == 16:\n"
        "            raise ValueError('sixteen are too many')\n"
        "        return x.flatten(1)[:, :10]\n"
        "def net():\n"
        "    return Net()\n"
    )
    words = ("model=failing:net", *FOREIGN, *SMALL, f"results={tmp_path}")
    code, out, err = command(capsys, *words)
    assert code == 1
    assert "clean on block 0 of failing-net: ValueError: sixteen are too many" in out + err
    assert "failing.py:5" in out + err
    assert "Traceback" not in out + err


def test_help_lists_attacks_suites_and_accepted_keys(capsys):
    code, out, _ = command(capsys, "--help", "all")
    assert code == 0
    for word in ("autoattack", "pgd-NxR", "ti-dim", "paper-linf", "evaluation.block", "surrogate"):
        assert word in out
    assert "optim.lr" not in out
