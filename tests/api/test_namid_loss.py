"""`raymi.NAMIDLoss` is the engine's step: same gradients, same cost, on any number of ranks."""

from __future__ import annotations

import copy
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import run_ranks
from tiny_runs import tiny_config, tiny_state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import raymi
from raymi.losses import AdversarialLoss
from raymi.losses.trades import TRADES
from raymi.models.running_statistics import running_statistics_frozen

NUM_CLASSES, SIDE = 10, 8
TINY = {"hidden": 16, "base_width": 4, "depth": 1}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bounded": ("at", {}),
    "off": ("at", {"weight": 0}),
    "fixed weight on TRADES": ("trades", {"weight": 2.0}),
    "MART": ("mart", {}),
    "paper": ("at", {"form": "paper", "hidden": 16, "samples": "all"}),
    "contrast": ("at", {"objective": "contrast", "bound": "dv"}),
    "WMIM": ("at", {"form": "wmim"}),
    "other classes": ("at", {"negative_classes": "other", "natural_cap": True}),
    "JS on MART": (
        "mart",
        {"form": "js", "weight": 3.0, "hidden": None, "base_width": None, "depth": None},
    ),
}


class Costs(TorchDispatchMode):
    """Counts convolutions, matrix products and normalisations, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if re.search("convolution|mm$|norm", name):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def loss_of(base: Any = "at", seed: int = 0, **mi: Any) -> raymi.NAMIDLoss:
    return raymi.NAMIDLoss(NUM_CLASSES, SIDE, loss=base, seed=seed, **{**TINY, **mi})


def batch_of(num: int = 24) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, images, adversarial images and labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, NUM_CLASSES))
    x, y = torch.rand(num, 3, SIDE, SIDE), torch.arange(num) % NUM_CLASSES
    return model, x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1), y


def step(loss: raymi.NAMIDLoss, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Updates the estimators and leaves the gradient in the model's parameters."""
    logits, logits_adv = model(x), model(x_adv)
    loss.update(x, x_adv, logits.detach(), logits_adv.detach(), y)
    model.zero_grad()
    value = loss(x, x_adv, logits, logits_adv, y)
    value.backward()
    return value.detach()


@pytest.mark.parametrize(("base", "mi"), SETTINGS.values(), ids=SETTINGS)
def test_two_steps_equal_those_of_the_engine(base: str, mi: dict[str, Any]) -> None:
    """Gradients, estimators and metrics bit for bit, and as many operations."""
    settings = {f"mi.{key}": value for key, value in mi.items()} | {"loss.base": base}
    state, loader = tiny_state(tiny_config(settings))
    loss = loss_of(base, seed=state.config.seed, **mi)
    for batch in list(loader.epoch(0))[:2]:
        x, y, shard = batch
        x_adv, model = state.attack(x, y, shard), copy.deepcopy(state.model)
        with Costs() as attack:
            state.attack(x, y, shard)
        with Costs() as engine:
            metrics = state.step(batch)
        needs_clean = loss.loss.needs_clean_gradient or mi.get("form") == "paper"
        with Costs() as own:
            with torch.set_grad_enabled(needs_clean), running_statistics_frozen(model):
                logits = model(x)
            logits_adv = model(x_adv)
            loss.update(x, x_adv, logits.detach(), logits_adv.detach(), y)
            loss(x, x_adv, logits, logits_adv, y).backward()
        if "weight" not in mi or mi["weight"]:  # else the engine computes no clean output
            assert own.counts == engine.counts - attack.counts
            assert own.counts
        expected = {name: p.grad for name, p in state.model.named_parameters()}
        found = {name: p.grad for name, p in model.named_parameters()}
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
        assert {k: v for k, v in metrics.items() if k in loss.metrics} == loss.metrics
        if state.estimators is not None:
            pairs = zip(state.estimators.state_dict().items(),
                        loss.estimators.state_dict().values(), strict=True)  # fmt: skip
            assert [name for (name, a), b in pairs if not torch.equal(a, b)] == []


@pytest.mark.parametrize(
    ("mi", "message"),
    [
        ({"form": "teacher"}, "mi.form=teacher averages the classifier: train with raymi.fit"),
        ({"form": "js"}, "got weight=linear:0:10: give a number"),
        ({"temperature": "cosine:1:0.1"}, "got temperature=cosine:1:0.1: give a number"),
    ],
)
def test_forms_and_schedules_of_a_whole_run_are_refused(mi: dict[str, Any], message: str) -> None:
    with pytest.raises(raymi.UserError, match=re.escape(message)):
        raymi.NAMIDLoss(NUM_CLASSES, SIDE, **mi)


def test_classifier_loss_leaves_the_estimators_alone() -> None:
    model, x, x_adv, y = batch_of()
    loss = loss_of()
    before = copy.deepcopy(loss.estimators.state_dict())
    loss(x, x_adv, model(x), model(x_adv), y).backward()
    assert all(p.grad is None for p in loss.parameters())
    assert all(torch.equal(v, before[k]) for k, v in loss.estimators.state_dict().items())


def test_state_loads_with_weights_only_and_continues_bit_for_bit() -> None:
    model, *batch = batch_of()
    loss, file = loss_of(), io.BytesIO()
    step(loss, model, *batch)
    torch.save(loss.state_dict(), file)
    other = loss_of(seed=7)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    values = [[step(one, model, *batch) for _ in range(3)] for one in (loss, other)]
    assert values[0] == values[1]


def of_rank(rank: int, world_size: int, sizes: list[int]) -> tuple[Any, Any]:
    """Mean over ranks of losses and gradients of two steps in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        model, *batch = batch_of(sum(sizes))
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        parts = [tensor[rows] for tensor in batch]
        loss = loss_of("trades", cosine=1.0, bound="dv")
        if world_size > 1:
            model = nn.parallel.DistributedDataParallel(model)
        values = torch.stack([step(loss, model, *parts) for _ in range(2)])
        if world_size > 1:
            torch.distributed.all_reduce(values)
        return values / world_size, [p.grad for p in model.parameters()]
    finally:
        torch.set_default_dtype(torch.float32)


def test_ranks_of_any_size_equal_one_process(tmp_path: Path) -> None:
    values, gradients = of_rank(0, 1, [25])
    for theirs, their_gradients in run_ranks(of_rank, 2, [17, 8], tmp_path=tmp_path):
        torch.testing.assert_close(theirs, values)
        torch.testing.assert_close(their_gradients, gradients)


def test_own_loss_is_used_by_object_class_and_name() -> None:
    model, *batch = batch_of()
    own = (TRADES(beta=0.0), TRADES(beta=6.0), TRADES, "raymi.losses.trades:TRADES")
    weak, *others = (step(loss_of(one, weight=0), model, *batch) for one in own)
    assert weak < others[0] == others[1] == others[2]


class OwnMean(AdversarialLoss):
    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Any) -> Tensor:
        return nn.functional.cross_entropy(logits_adv, y)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (3, "loss 'int' must be a subclass of raymi.losses.AdversarialLoss, got int"),
        (OwnMean, "loss 'OwnMean' depends on the number of workers"),
        ("no_such_module:Loss", "cannot import module"),
    ],
)
def test_unusable_losses_are_refused(loss: Any, message: str) -> None:
    with pytest.raises(raymi.UserError, match=message):
        loss_of(loss)


@pytest.mark.parametrize(
    ("mi", "message"),
    [
        ({"hiden": 3}, r"unknown key 'mi\.hiden'"),
        ({"weight": 1, "balance": 0.2}, "give either weight or balance"),
        ({"base": "traeds"}, "trades"),
        ({"depth": 5}, "at most 3 for 8-pixel images"),
    ],
)
def test_wrong_settings_are_refused(mi: dict[str, Any], message: str) -> None:
    with pytest.raises(raymi.UserError, match=message):
        loss_of(**mi)


def test_wrong_inputs_are_refused() -> None:
    model, x, x_adv, y = batch_of()
    logits, logits_adv = model(x), model(x_adv)
    with pytest.raises(raymi.UserError, match=r"x must have shape \(24, 3, 8, 8\), got"):
        loss_of()(x[..., :4], x_adv, logits, logits_adv, y)
    with pytest.raises(raymi.UserError, match=r"logits_adv must have shape \(24, 10\), got"):
        loss_of()(x, x_adv, logits, logits_adv[:, :5], y)
    with pytest.raises(raymi.UserError, match="gradient of TRADES at the clean logits"):
        loss_of("trades")(x, x_adv, logits.detach(), logits_adv, y)
    with pytest.raises(raymi.UserError, match="give y"):
        loss_of(objective="contrast").update(x, x_adv, logits, logits_adv)
