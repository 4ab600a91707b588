"""Classifiers that change their input or themselves are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from raymi import evaluate
from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch, run_attack
from raymi.evaluation.changes import changes_of

ALONE = ("scaling.workers=1", "tracking.enabled=false")
WORDS = (*ALONE, "data.name=digits", "eps=0.1", "samples=20", "checks=0", "attacks=pgd-3")


class Base(nn.Module):
    """Linear network; subclasses change it in `before`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3 * 64, 10)
        self.register_buffer("shift", torch.zeros(3 * 64))
        self.setup()

    def setup(self) -> None:
        pass

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.fc(x.flatten(1) + self.shift)


class InPlace(Base):
    def before(self, x):
        return x.mul_(0.5)


class BehindAutograd(Base):
    def before(self, x):
        x.data.clamp_(0.2, 0.8)
        return x


class BehindTorch(Base):
    def before(self, x):
        x.detach().numpy()[...] = 1 - x.detach().numpy()
        return x


class OfAnotherView(Base):
    def before(self, x):
        with torch.no_grad():
            x[:, 0].zero_()
        return x.clone()


class OnlyWithGradient(Base):
    def before(self, x):
        if torch.is_grad_enabled():
            x.data.zero_()
        return x


INPUTS = [InPlace, BehindAutograd, BehindTorch, OfAnotherView, OnlyWithGradient]


class Buffer(Base):
    def before(self, x):
        self.shift += 1e-6
        return x


class BufferByData(Base):
    def before(self, x):
        self.shift.data.add_(1e-6)
        return x


class ParameterByData(Base):
    def before(self, x):
        self.fc.weight.data[0, 0] += 1e-6
        return x


class ReplacedBuffer(Base):
    def before(self, x):
        self.shift = self.shift + 1e-6
        return x


class Counter(Base):
    def setup(self):
        self.calls = 0

    def before(self, x):
        self.calls += 1
        return x


class Tensors(Base):
    def setup(self):
        self.memory = {"mean": [torch.zeros(())]}

    def before(self, x):
        self.memory["mean"][0] = 0.9 * self.memory["mean"][0] + x.detach().mean()
        return x


class Log(Base):
    def setup(self):
        self.log = []

    def before(self, x):
        self.log.append(len(x))
        return x


class Holder:
    def __init__(self):
        self.calls = 0


class InAnObject(Base):
    def setup(self):
        self.holder = Holder()

    def before(self, x):
        self.holder.calls += 1
        return x


class Unregistered(Base):
    def setup(self):
        self.layers = [nn.Linear(1, 1)]

    def before(self, x):
        self.layers[0].weight.data += 1e-6
        return x


STATES = {
    Buffer: "buffer shift", BufferByData: "buffer shift", ReplacedBuffer: "buffer shift",
    ParameterByData: "parameter fc.weight", Counter: "attribute calls",
    Tensors: r"attribute memory\['mean'\]\[0\]", Log: "attribute log",
    InAnObject: "attribute holder.calls", Unregistered: r"attribute layers\[0\].weight",
}  # fmt: skip

CALLS = [0]


class Outside(Base):
    """Has its state in a global of its module."""

    def before(self, x):
        CALLS[0] += 1
        return x + 0.01 * CALLS[0]


class Cached(Base):
    """Computes a constant once and saves features for a plot."""

    def setup(self):
        self.constant, self.features = None, None

    def before(self, x):
        if self.constant is None:
            self.constant = torch.ones(1)
        self.features = (x * self.constant).mean(0)
        return x


def images() -> torch.Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)
def test_a_changed_input_is_named(kind):
    assert "input that changes" in changes_of(kind().eval(), images(), 0).refusal()


@pytest.mark.parametrize(("kind", "name"), STATES.items(), ids=lambda one: str(one))
def test_changed_state_is_named(kind, name):
    assert name.replace("\\", "") in changes_of(kind().eval(), images(), 0).refusal()


def test_state_outside_of_the_network_is_detected_by_its_outputs():
    assert changes_of(Outside().eval(), images(), 0).outputs
    assert "global generator" in changes_of(Outside().eval(), images(), 0).refusal()


@pytest.mark.parametrize("kind", [Base, Cached])
def test_a_network_without_changes_passes(kind):
    model = kind().eval()
    changes = changes_of(model, images(), 0)
    assert not changes.input
    assert changes.state == ()
    assert not changes.outputs
    assert changes.refusal() is None


def test_the_global_generator_is_not_state_of_the_network():
    class Noisy(Base):
        def before(self, x):
            return x + 0.1 * torch.randn_like(x)

    assert changes_of(Noisy().eval(), images(), 0).refusal() is None


@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)
def test_attacks_protect_their_images_from_the_network(kind):
    x, model = images(), kind().eval()
    y = torch.arange(8)
    before = x.clone()
    found = run_attack(find_attack("pgd-3"), model, Batch(x, y, y, 0), Threat("linf", 0.1))
    assert torch.equal(x, before)
    assert bool(found.usable.all())
    assert float(found.linf.max()) <= 0.1 + 1e-6


def in_place():
    return InPlace()


def behind_autograd():
    return BehindAutograd()


def counter():
    return Counter()


LATE = """
import torch
from torch import nn
calls = 0
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 10)
    def forward(self, x):
        global calls
        calls += 1
        logits = self.fc(x.flatten(1))
        return logits if calls < 60 else logits.flip(1)
def net():
    return Net()
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("in_place", "input that changes"),
        ("behind_autograd", "input that changes"),
        ("counter", "state that changes: attribute calls"),
    ],
)
def test_a_network_that_changes_is_refused(name, message, tmp_path, capsys):
    code = evaluate.main([f"model=test_changes:{name}", *WORDS, f"results={tmp_path / 'r'}"])
    out, err = capsys.readouterr()
    assert code == 2
    assert message in err
    assert "accuracy" not in out
    assert not (tmp_path / "r").exists()


def test_a_network_that_changes_during_attacks_fails_the_evaluation(
    tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "late_net.py").write_text(LATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("attacks=pgd-40", *WORDS[:-1], "json=numbers.json", f"results={tmp_path / 'r'}")
    assert evaluate.main(["model=late_net:net", *words]) == 2
    out, err = capsys.readouterr()
    assert (
        "has other outputs after this step than before any attack (state that changes)" in out + err
    )
    assert not (tmp_path / "numbers.json").exists()
