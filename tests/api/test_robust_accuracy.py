"""`raymi.robust_accuracy`: the numbers of the command, resumed, for valid input only."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from own_digits import Net, digits
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import raymi
from raymi.data import load_splits
from raymi.evaluate import main as evaluate
from raymi.evaluation.blocks import Outcome, Step
from raymi.evaluation.callback import EvaluationCallback


def trained(image_size: int = 8) -> nn.Module:
    """Returns a linear classifier of digits of fixed weights, better than chance."""
    x, y = digits(600).tensors
    x = nn.functional.interpolate(x, (image_size, image_size)).expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 10))
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return trained()


def robust(model: Any, data: Any = None, **arguments: Any) -> raymi.RobustAccuracy:
    data = digits(60, start=900) if data is None else data
    arguments = {
        "eps": 0.1,
        "suite": "quick",
        "checks": 0,
        "callback": EvaluationCallback(),
        **arguments,
    }
    return raymi.robust_accuracy(model, data, **arguments)


def test_numbers_equal_those_of_the_command(classifier, tmp_path, monkeypatch):
    test = load_splits("digits").test
    images = torch.zeros(1797, *test.images.shape[1:], dtype=torch.uint8)
    images[test.places] = test.images
    labels = torch.zeros(1797, dtype=torch.int64).index_put((test.places,), test.labels)
    data = Subset(TensorDataset(images, labels), test.places.tolist())
    result = robust(classifier, data, results=tmp_path / "python")

    torch.save(classifier.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "classifiers.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def linear(num_classes, image_size):\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))\n"
        f"    model.load_state_dict(torch.load({str(tmp_path / 'weights.pt')!r}))\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["model=classifiers:linear", "data.name=digits", "eps=0.1", "suite=quick", "checks=0",
             f"results={tmp_path / 'command'}", "tracking.enabled=false",
             "workers=1", f"--json={tmp_path / 'numbers.json'}"]  # fmt: skip
    assert evaluate(words) == 0
    (expected,) = json.loads((tmp_path / "numbers.json").read_text())["models"]
    numbers = {one["name"]: one for one in expected["results"]}
    assert result.accuracies == {name: one["accuracy"] for name, one in numbers.items()}
    assert result.attack == "pgd-20"
    assert result.accuracy == numbers["pgd-20"]["accuracy"]
    assert result.interval == (numbers["pgd-20"]["low95"], numbers["pgd-20"]["high95"])
    assert result.n == len(test)
    assert 0 < result.accuracy < result.accuracies["clean"]

    (here,) = (tmp_path / "python").glob("*/outcomes.parquet")
    (there,) = (tmp_path / "command").glob("*/outcomes.parquet")
    columns = ["ensemble", "attack", "selected", "label", "prediction", "broken", "l2"]
    one, other = (pq.read_table(path, columns=columns).to_pandas() for path in (here, there))
    pd.testing.assert_frame_equal(one, other)


def test_outcomes_are_of_each_sample(classifier):
    result = robust(classifier)
    x, y = digits(60, start=900).tensors
    x = ((x * 255).round() / 255).expand(-1, 3, -1, -1)
    assert torch.equal(result.outcomes["clean"], classifier(x).argmax(1) == y)
    assert not (result.outcomes["pgd-20"] & ~result.outcomes["clean"]).any()
    assert result.outcomes["pgd-20"].float().mean().item() == pytest.approx(result.accuracy)


def test_model_and_random_state_do_not_change(classifier):
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    classifier.train()
    state = torch.get_rng_state()
    robust(classifier)
    assert classifier.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())


class Steps(EvaluationCallback):
    """Counts the steps, and those that were recorded before."""

    def __init__(self, most: float = float("inf")) -> None:
        self.steps, self.cached, self.most = 0, 0, most

    def on_step(self, step: Step, outcome: Outcome, cached: bool) -> None:
        self.steps += 1
        self.cached += cached
        if self.steps >= self.most:
            raise KeyboardInterrupt


def test_interrupted_call_continues_in_its_folder(classifier, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        robust(classifier, results=tmp_path, callback=Steps(most=3))
    continued = Steps()
    result = robust(classifier, results=tmp_path, callback=continued)
    assert continued.cached == 3
    assert result.accuracies == robust(classifier).accuracies
    other = trained(image_size=8)
    other.get_parameter("1.bias").data += 1
    fresh = Steps()
    robust(other, results=tmp_path, callback=fresh)
    assert fresh.cached == 0


class Pair(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


IMAGES, LABELS = digits(60).tensors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": lambda x: x}, "model must be a torch.nn.Module, got function"),
        ({"model": Pair(10, 8)}, r"must map images .* got tuple"),
        ({"model": Net(5, 8)}, r"labels of data must be 0..4, as Net has 5 logits, got 9"),
        ({"data": [1]}, r"sample 0 of data must be \(image, label\)"),
        ({"data": TensorDataset(IMAGES * 255, LABELS)}, r"must be in \[0, 1\]"),
        ({"data": TensorDataset(IMAGES[..., :6], LABELS)}, "images of data must be square"),
        ({"eps": 8}, "did you mean eps=8/255"),
        ({"eps": 0}, "allows no perturbation"),
        ({"norm": "l1"}, "attack.norm: expected linf | l2"),
        ({"suite": "standart"}, "did you mean standard"),
    ],
)
def test_wrong_input_is_one_message(arguments, message):
    with pytest.raises(raymi.UserError, match=message):
        robust(**{"model": Net(10, 8), **arguments})
