"""A network that cannot be trained, attacked or kept is refused before any work, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs
import torch
from gloo import run_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.network_check import NetworkFacts, check_network
from raymi.errors import UserError
from raymi.evaluation.model_source import raymi_source
from raymi.models import MODELS, architecture, build_model
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.weights import read_weights_file

SIZES = {"num_classes": 10, "image_size": 8}
AWP = {"optim.awp": 0.01, "optim.awp_warmup": 0.0}


class Body(nn.Module):
    """A small network with a seam before its logits are returned."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * image_size**2, num_classes)
        self.setup(num_classes)

    def setup(self, num_classes: int) -> None:
        pass

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.conv(x))).flatten(1)

    def forward(self, x: torch.Tensor):
        return self.head(self.features(x))


class TrainTuple(Body):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class TrainDict(Body):
    def forward(self, x):
        logits = super().forward(x)
        return {"logits": logits} if self.training else logits


class TrainShape(Body):
    def forward(self, x):
        logits = super().forward(x)
        return logits[:, :-1] if self.training else logits


class TrainError(Body):
    def forward(self, x):
        return super().forward(x if not self.training else None)


class ExtraState(Body):
    def get_extra_state(self):
        return {"n": 3}

    def set_extra_state(self, state):
        pass


class Detached(Body):
    def features(self, x):
        return super().features(x).detach()


class DetachedInput(Body):
    def features(self, x):
        return super().features(x.detach())


class NoGradientInTraining(Body):
    def forward(self, x):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            return super().forward(x)


class Growing(Body):
    def setup(self, num_classes):
        self.register_buffer("seen", torch.zeros(0))

    def features(self, x):
        if self.training:
            self.seen = torch.cat([self.seen, x.mean().detach()[None]])
        return super().features(x)


class OtherType(Body):
    def setup(self, num_classes):
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    def features(self, x):
        if self.training:
            self.seen = self.seen + 0.5
        return super().features(x)


class NewBuffer(Body):
    def features(self, x):
        if self.training:
            self.register_buffer("late", torch.ones(1))
        return super().features(x)


class Mask(Body):
    def setup(self, num_classes):
        self.register_buffer("mask", torch.full((2,), float("-inf")))


class OneByOne(Body):
    def forward(self, x):
        return super().forward(x).squeeze(0)


class Reentrant(Body):
    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=True)


class Checkpointed(Body):
    def features(self, x):
        return checkpoint(super().features, x, use_reentrant=False)


class EvalState(Body):
    def features(self, x):
        if not self.training:
            self.head.bias.data += 1e-4
        return super().features(x)


class EvalCounter(Body):
    def setup(self, num_classes):
        self.calls = {"eval": [0]}

    def features(self, x):
        self.calls["eval"][0] += not self.training
        return super().features(x)


CALLS = [0]


class LaterSign(Body):
    def setup(self, num_classes):
        CALLS[0] = 0

    def forward(self, x):
        CALLS[0] += 1
        return super().forward(x) * (1 if CALLS[0] < 7 else -1)


class ChangedData(Body):
    def features(self, x):
        return [super().features(x), x.data.zero_()][0]


class ChangedByNumpy(Body):
    def features(self, x):
        x.detach().numpy()[...] *= 0.5
        return super().features(x)


class ReplacedData(Body):
    def features(self, x):
        x.data = x.data * 0.5
        return super().features(x)


class ChangedDataInTraining(Body):
    def features(self, x):
        if self.training:
            x.data.mul_(0.5)
        return super().features(x)


class ChangedVisibly(Body):
    def features(self, x):
        return super().features(x.mul_(0.5))


class HiddenProjection(Body):
    def setup(self, num_classes):
        self.register_buffer("turn", torch.randn(num_classes, num_classes), persistent=False)

    def forward(self, x):
        return super().forward(x) @ self.turn


class Unused(Body):
    def setup(self, num_classes):
        self.spare = nn.Linear(4, 4)


class Sometimes(Body):
    def setup(self, num_classes):
        self.extra = nn.Linear(num_classes, num_classes)

    def forward(self, x):
        logits = super().forward(x)
        return logits + self.extra(logits) if torch.rand(()) < 0.5 else logits


class Softmax(Body):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Parameterless(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x):
        return x.flatten(1)[:, : self.num_classes]


def frozen(num_classes, image_size):
    return Body(num_classes, image_size).requires_grad_(False)


class UnusedLazy(Body):
    def setup(self, num_classes):
        self.spare = nn.LazyLinear(3)


ONE = Body(10, 8)


def same_each_time(num_classes, image_size):
    return ONE


WIDTHS = iter(range(3, 1000))


def wider_each_time(num_classes, image_size):
    hidden = next(WIDTHS)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * image_size**2, hidden), nn.Linear(hidden, num_classes)
    )


def checked(name: str, **how: bool) -> NetworkFacts:
    def build() -> nn.Module:
        return build_model(f"test_network_check:{name}", mean=[0.4] * 3, std=[0.3] * 3, **SIZES)

    return check_network(name, build(), build, **SIZES, **how)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TrainTuple", r"to logits \(4, 10\) in train mode, got tuple: return the logits alone"),
        ("TrainDict", "in train mode, got dict"),
        ("TrainShape", r"in train mode, got \(4, 9\)"),
        ("TrainError", "in train mode, but TypeError"),
        ("ExtraState", r"tensors alone, got net._extra_state \(dict\)"),
        ("Detached", "no gradient by the images"),
        ("DetachedInput", "no gradient by the images"),
        ("NoGradientInTraining", "no gradient by any of them in train mode"),
        ("OtherType", r"shapes and types of its buffers, got others in net.seen"),
        ("EvalCounter", r"alone in eval mode, got changes in attribute net.calls\['eval'\]\[0\]"),
        ("LaterSign", "the same logits in eval mode, got other logits later"),
        ("ChangedData", r"images that it is given alone, got .*let it begin with x = x.clone\(\)"),
        ("ChangedByNumpy", "images that it is given alone"),
        ("ReplacedData", "images that it is given alone"),
        ("ChangedDataInTraining", "images that it is given alone in train mode"),
        ("Growing", r"shapes and types of its buffers, got others in net.seen"),
        ("NewBuffer", r"names, shapes and types of its buffers, got others in net.late"),
        ("Mask", "finite weights and buffers, got others in net.mask: .*persistent=False"),
        ("OneByOne", r"images \(1, 3, 8, 8\) to logits \(1, 10\)"),
        ("Reentrant", "use_reentrant=False"),
        ("EvalState", "buffers and attributes alone in eval mode, got changes in net.head"),
        ("HiddenProjection", r"register_buffer\(..., persistent=True\)"),
        ("Parameterless", "have parameters to train"),
        ("frozen", "none that require a gradient"),
        ("UnusedLazy", "lazy layers, got net.spare.weight"),
        ("same_each_time", "make a new network at each call"),
        ("wider_each_time", "take each other's state dict"),
    ],
)
def test_a_network_that_would_fail_later_is_refused(name, said):
    with pytest.raises(UserError, match=said) as refusal:
        checked(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["TrainTuple", "ExtraState", "DetachedInput", "Growing"])
def test_training_refuses_it_before_it_creates_a_journal(name, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with pytest.raises(UserError, match=f"model 'test_network_check:{name}' must"):
        train(own_config(name), LocalContext("cpu"), folder)
    assert list(folder.path.iterdir()) == []


def own_config(name: str, **settings):
    own = {"model.name": f"test_network_check:{name}", "model.width": None, "model.depth": None}
    return tiny_runs.tiny_config({**own, "optim.epochs": 1, "mi.weight": 0.0, **settings})


def test_networks_of_other_tests_pass_and_random_state_stays():
    before = torch.get_rng_state()
    for name in ("dropout_net", "vector_net", "tied_net", "norm_free_net", "counting_net"):

        def build(name: str = name) -> nn.Module:
            with torch.random.fork_rng([]):
                return build_model(f"tiny_runs:{name}", mean=[0.4] * 3, std=[0.3] * 3, **SIZES)

        model = build()
        values = {k: v.clone() for k, v in model.state_dict().items()}
        assert check_network(name, model, build, **SIZES, averaged=True) == NetworkFacts()
        assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_changes_of_images_that_autograd_sees_are_accepted():
    assert checked("ChangedVisibly") == NetworkFacts()


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_of_raymi_pass(name):
    width = 1 if name.startswith("wrn") else 0.125
    depth = {"wrn-28-10": 10, "wrn-34-10": 10}.get(name)

    def build() -> nn.Module:
        return build_model(
            name, num_classes=10, image_size=16, mean=[0.4] * 3, std=[0.3] * 3,
            width=width, depth=depth,
        )  # fmt: skip

    how = {"averaged": True, "frozen_gradients": True}
    facts = check_network(name, build(), build, num_classes=10, image_size=16, **how)
    assert facts == NetworkFacts()


def test_a_softmax_gives_a_warning_at_the_start_of_training(tmp_path):
    folder = RunFolder(tmp_path)
    train(own_config("Softmax"), LocalContext("cpu"), folder)
    said = [e["message"] for e in JournalReader(folder.journal).new_events() if "message" in e]
    assert any("after a softmax" in message for message in said)
    assert checked("Body") == NetworkFacts()


def test_checkpointed_activations_are_trained_under_awp(tmp_path):
    config = own_config("Checkpointed", **AWP)
    assert train(config, LocalContext("cpu"), RunFolder(tmp_path)).finished


class Ended(Exception):
    """The end of a step after AWP's inner pass."""


def inner_pass_alone(ascend):
    ascend()
    raise Ended


def test_awp_leaves_running_statistics_unchanged_with_checkpointed_activations():
    found = []
    for name in ("Checkpointed", "Body"):
        state, loader = tiny_runs.tiny_state(own_config(name, **AWP))
        state.training_step.worst_weights = inner_pass_alone
        with pytest.raises(Ended):
            state.step(next(iter(loader.epoch(0))))
        norm = state.model.net.norm
        assert torch.equal(norm.running_mean, torch.zeros(4))
        found.append([p.grad.clone() for p in state.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_checkpointed_batchnorm_gives_a_remark_or_is_refused_by_the_loss():
    remarks = checked("Checkpointed").remarks
    assert len(remarks) == 1
    assert "running statistics follow each batch twice" in remarks[0]
    with pytest.raises(UserError, match="compute no BatchNorm again in its backward pass"):
        checked("Checkpointed", frozen_gradients=True)


@pytest.mark.parametrize("name", ["Unused", "Sometimes"])
def test_parameters_without_gradients_are_listed(name):
    assert (
        checked(name).unused
        == {
            "Unused": ("net.spare.weight", "net.spare.bias"),
            "Sometimes": ("net.extra.weight", "net.extra.bias"),
        }[name]
    )


@pytest.mark.parametrize("name", ["Unused", "Checkpointed"])
def test_two_workers_train_under_awp_as_one_does(name, tmp_path):
    own = {"model.name": f"test_network_check:{name}", "model.width": None, "model.depth": None}
    settings = {**own, **AWP, "optim.epochs": 1, "mi.weight": 0.0}
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        if world == 1:
            tiny_runs.tiny_run(0, 1, folder, settings, [])
        else:
            run_ranks(tiny_runs.tiny_run, 2, folder, settings, [], tmp_path=tmp_path)
        found.append(read_weights_file(RunFolder(folder).weights("last")).tensors)
    one, two = found
    if name == "Unused":
        assert torch.equal(one["net.spare.weight"], two["net.spare.weight"])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_of_one_image_is_refused_where_batchnorm_cannot_take_it(size, tmp_path):
    settings = {"model.name": "tiny_runs:vector_net", "model.width": None, "model.depth": None}
    settings |= {"optim.epochs": 1, "mi.weight": 0.0, "optim.batch_size": size}
    config = tiny_runs.tiny_config(settings)
    if size == 1:
        with pytest.raises(UserError, match=r"BatchNorm .*set another optim\.batch_size"):
            train(config, LocalContext("cpu"), RunFolder(tmp_path))


def test_a_trained_state_gives_the_same_model_source():
    built_as = architecture("test_network_check:Body", **SIZES)
    model = build_model("test_network_check:Body", mean=[0.4] * 3, std=[0.3] * 3, **SIZES).eval()
    loaded = raymi_source("mine", built_as, model.state_dict()).load()
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(loaded(x), model(x))
