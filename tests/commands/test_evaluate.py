"""`raymi.evaluate` as people use it, in one process and without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_config
from torch import nn

from raymi import evaluate
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
    """Exit code, what it printed, and what it said of errors."""
    code = evaluate.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def numbers(path: Path):
    return {
        (model["model"], result["name"]): (result["right"], result["num"])
        for model in json.loads(path.read_text())["models"]
        for result in model["results"]
    }


def test_a_run_its_weights_and_a_function_of_them_have_the_same_numbers(home, tmp_path, capsys):
    code, out, _ = command(capsys, "model=a", *SMALL, "--json", str(tmp_path / "run.json"))
    assert code == 0
    assert "a-best: 40 images of digits-test-40, L_inf eps 0.2" in out
    assert "no sign of false robustness" in out
    code, out, _ = command(capsys, "model=runs/a/best.safetensors", *SMALL)
    assert code == 0
    assert "3 of 3 blocks from the ledger" in out, "the same network: nothing is made again"
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


def test_two_models_a_surrogate_and_all_numbers_as_json(home, tmp_path, capsys):
    place = tmp_path / "all.json"
    words = ("model=a,runs/b/last.safetensors", "surrogate=a", *SMALL[:-1], "attacks=pgd-3")
    code, out, err = command(capsys, *words, f"results={tmp_path}", f"json={place}")
    assert code == 0, err
    assert "transfer of pgd-3" in out
    assert "McNemar" in out
    told = json.loads(place.read_text())
    assert [model["model"] for model in told["models"]] == ["a-best", "b-last"]
    assert {pair["attack"] for pair in told["differences"]} == {"clean", "pgd-3"}
    (matrix,) = told["transfer"]
    assert matrix["surrogates"]["a-best"]["a-best"] == matrix["white_box"]["a-best"]
    assert matrix["clean"].keys() == matrix["white_box"].keys() == {"a-best", "b-last"}
    for model in told["models"]:
        assert (Path(model["folder"]) / "outcomes.parquet").is_file()
        assert json.loads((Path(model["folder"]) / "report.json").read_text()) == model


class Quantised(nn.Module):
    """Robust at first sight: gradients see nothing."""

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
def test_doubts_are_told(name, sign, home, tmp_path, capsys):
    words = (f"model=test_evaluate:{name}", *FOREIGN, *SMALL, f"results={tmp_path}")
    code, out, err = command(capsys, *words)
    assert code == 0, err
    assert sign in out
    assert out.count(sign) == 2, "at once, and with the table"


def test_what_autograd_cannot_follow_is_attacked_by_queries_alone(home, tmp_path, capsys):
    words = ("model=test_evaluate:detached", *FOREIGN, *ALONE, "samples=20", f"results={tmp_path}")
    code, _, err = command(capsys, *words, "attacks=pgd-3")
    assert code == 2
    assert "do not depend on the images as autograd sees it, and pgd-3 need gradients" in err
    code, out, err = command(capsys, *words, "attacks=square-1000", "checks=10")
    assert code == 0, err
    assert "doubtful: gradients of the margin that vanish" in out


def test_a_network_is_compared_with_others_not_with_itself(home, capsys):
    code, _, err = command(capsys, "model=a,runs/a/best.safetensors", *SMALL)
    assert code == 2
    assert "a and runs/a/best.safetensors are the same network" in err


def test_after_ctrl_c_the_same_command_ends_with_the_same_numbers(
    home, tmp_path, capsys, monkeypatch
):
    whole = tmp_path / "whole.json"
    words = ("model=a", *SMALL)
    command(capsys, *words, f"results={tmp_path / 'whole'}", f"json={whole}")
    steps = []

    def interrupt(self, step, outcome, known):
        steps.append(known)
        if len(steps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(EvaluationDisplay, "step", interrupt)
    cut = (*words, f"results={tmp_path / 'cut'}", f"json={tmp_path / 'cut.json'}")
    code, out, _ = command(capsys, *cut)
    assert code == 130
    assert "stopped by SIGINT; what was computed is kept in" in out
    assert f"to continue: python -m raymi.evaluate model=a {SMALL[0]}" in out
    steps.clear()
    monkeypatch.setattr(
        EvaluationDisplay, "step", lambda self, step, out, known: steps.append(known)
    )
    assert command(capsys, *cut)[0] == 0
    assert sum(steps) == 5
    assert len(steps) == 9
    assert numbers(tmp_path / "cut.json") == numbers(whole)


def test_a_network_that_fails_ends_with_one_message(home, tmp_path, capsys):
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


def test_help_names_attacks_suites_and_only_keys_that_it_takes(capsys):
    code, out, _ = command(capsys, "--help")
    assert code == 0
    for word in ("autoattack", "pgd-NxR", "ti-dim", "paper-linf", "evaluation.block", "surrogate"):
        assert word in out
    assert "optim.lr" not in out
