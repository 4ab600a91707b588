"""`raymi.fit` in this process: own data and networks, equal weights, interruption, refusals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_digits import QUICK, Net, digits
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import raymi
from raymi.losses import AdversarialLoss, losses
from raymi.mi.forms import MITerm
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from raymi.standalone import main as standalone


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., raymi.FitResult]:
    """`raymi.fit` of a short run in this process, without output."""

    def call(*words: str, **arguments: Any) -> raymi.FitResult:
        settings = {**QUICK, "out": tmp_path, **arguments.pop("settings", {})}
        fixed: dict[str, Any] = {"workers": 0, "callbacks": (), "settings": settings}
        if not words:
            fixed["recipe"] = "quickstart"
        return raymi.fit(*words, **{**fixed, **arguments})

    return call


def weights(path: Path, which: str = "last") -> dict[str, Tensor]:
    return load_file(RunFolder(path).weights(which))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_weights_equal_those_of_the_command(fit, tmp_path):
    settings = {"model.width": 0.25, "seed": 3, "data.limit": 100}
    result = fit(settings=settings)
    words = [f"{key}={str(value).lower()}" for key, value in {**QUICK, **settings}.items()]
    assert standalone([*words, "name=command", f"out={tmp_path}"]) == 0
    for which in ("best", "last"):
        assert_same(weights(result.path, which), weights(tmp_path / "command", which))


def test_weights_equal_those_of_the_command_on_the_same_arrays(fit, tmp_path):
    images, labels = digits(120).tensors
    test = digits(40, start=200)
    for part, (x, y) in {"train": (images, labels), "test": test.tensors}.items():
        (tmp_path / "arrays").mkdir(exist_ok=True)
        pixels = (x * 255).round().to(torch.uint8).numpy()
        np.savez(tmp_path / "arrays" / f"{part}.npz", image=pixels, label=y.numpy())
    result = fit(train=digits(120), test=test, settings={"model.width": 0.25})
    words = [f"{key}={str(value).lower()}" for key, value in QUICK.items()]
    words += [
        "recipe=quickstart",
        "data.name=npz",
        f"data.root={tmp_path / 'arrays'}",
        "data.image_size=none",
    ]
    assert standalone([*words, "model.width=0.25", "name=command", f"out={tmp_path}"]) == 0
    assert_same(weights(result.path), weights(tmp_path / "command"))


def test_own_data_and_network_give_a_classifier_of_raw_images(fit):
    test = digits(50, start=300)
    result = fit(model=Net, train=digits(), val=digits(50, start=200), test=test)
    x, y = test.tensors
    assert not result.classifier.training
    with torch.no_grad():
        accuracy = (result.classifier(x.expand(-1, 3, -1, -1)).argmax(1) == y).float().mean()
    # stored with 8 bits, sixteenths are rounded
    assert result.metrics["test/clean_acc"] == pytest.approx(accuracy.item(), abs=0.021)
    assert set(result.metrics) == {
        "test/clean_acc", "test/pgd1_acc", "val/clean_acc", "val/robust_acc"
    }  # fmt: skip
    assert result.path.is_dir()


def test_data_without_a_recipe_get_the_one_of_own_images(fit):
    images, labels = torch.rand(20, 3, 80, 80), torch.arange(20) % 2
    settings = {"optim.epochs": 1, "scaling.precision": "fp32", "probe.steps": 0}
    arguments = {"model": Net, "train": TensorDataset(images, labels), "settings": settings}
    run = RunFolder(fit(recipe=None, **arguments).path)
    assert run.read_about()["recipe"] == "photos"
    assert run.read_config().data.image_size == 64
    kept = RunFolder(fit(recipe="photos", **arguments).path)
    assert kept.read_config().data.image_size is None
    small = RunFolder(fit(recipe=None, settings={"data.limit": 100}).path)
    assert small.read_about()["recipe"] == "quickstart"


def test_weights_of_a_run_are_found_by_its_name(fit):
    source = fit(name="source", settings={"data.limit": 100})
    slow = {"optim.lr": 1e-12, "optim.epochs": 1, "optim.weight_decay": 0, "data.limit": 100}
    tuned = fit(settings={**slow, "model.weights": "source"})
    before, after = weights(source.path, "best"), weights(tuned.path)
    assert all(
        torch.allclose(after[key], before[key], atol=1e-6) for key in before if "weight" in key
    )
    with pytest.raises(raymi.UserError, match=r"model\.weights: no file .no_such_run."):
        fit(settings={"model.weights": "no_such_run"})


def test_module_is_trained_from_its_weights_and_does_not_change(fit):
    net = Net(10, 8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    slow = {"optim.lr": 1e-12, "optim.epochs": 1, "optim.weight_decay": 0}
    result = fit(model=net, train=digits(), settings=slow)
    assert_same(dict(net.state_dict()), before)
    trained = weights(result.path)
    assert torch.allclose(trained["net.head.weight"], before["head.weight"], atol=1e-6)


def test_interrupted_call_is_continued_by_the_same_call(fit):
    """Bit for bit, and the handler of SIGINT is the earlier one."""

    class Interrupt:
        def event(self, event: dict[str, Any]) -> None:
            if event["kind"] == "epoch" and event["epoch"] == 1:
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.25)  # the loop looks for stop requests each 0.2 s

    arguments = {"model": Net, "train": digits(), "settings": {"optim.epochs": 4}}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="same call with name='mine'"):
        fit(**arguments, name="mine", callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) == handler
    continued = fit(**arguments, name="mine")
    record = read_record(RunFolder(continued.path))
    epochs = [epoch.number for epoch in record.phases["classifier"]]
    assert epochs == [1, 2, 3, 4]
    assert_same(weights(continued.path), weights(fit(**arguments).path))


def test_finished_run_is_returned_without_training(fit):
    first = fit(model=Net, train=digits(), name="mine")
    journal = RunFolder(first.path).journal.read_bytes()
    again = fit(model=Net, train=digits(), name="mine")
    assert again.metrics == first.metrics
    assert RunFolder(first.path).journal.read_bytes() == journal


def test_time_limit_leaves_a_checkpoint(fit):
    with pytest.raises(TimeoutError, match=r"limit\.hours has passed"):
        fit(name="mine", settings={"limit.hours": 1e-9, "data.limit": 100})
    assert fit(name="mine", settings={"data.limit": 100}).metrics["test/clean_acc"] >= 0


def scaled(num_classes: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))


def scaled_twice(num_classes: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes), nn.Softplus())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": scaled_twice}, r"model.name \(model\)"),
        ({"train": digits(149)}, r"data.root \(train, val or test\)"),
        ({"test": digits(50, start=300)}, r"data.root \(train, val or test\)"),
        ({"settings": {"seed": 1}}, "seed"),
    ],
)
def test_run_of_a_name_is_not_continued_with_other_objects(fit, changed, named):
    arguments = {"model": scaled, "train": digits(), "name": "mine", "settings": {}}
    fit(**arguments)
    with pytest.raises(raymi.UserError, match=f"mine .* was begun with another {named}"):
        fit(**{**arguments, **changed})


class Sharp(MITerm):
    """Mean of the squared outputs, subtracted."""

    def __call__(self, x, x_adv, logits, logits_adv, y, shard):
        return -shard.mean(logits_adv.square().mean(dim=1)), {}


class Squared(AdversarialLoss):
    """Squared distance of probabilities from the labels."""

    title = "Squared"

    class Settings(AdversarialLoss.Settings):
        scale: float = 1.0
        """Factor."""

    def __call__(self, logits: Tensor, logits_adv: Tensor, y: Tensor, shard: Any) -> Tensor:
        target = nn.functional.one_hot(y, logits_adv.shape[1])
        apart = (logits_adv.softmax(dim=1) - target).square().sum(dim=1)
        return self.settings.scale * shard.mean(apart)


def test_own_losses_are_given_by_class_object_or_name(fit):
    settings = {"data.limit": 100, "optim.epochs": 1}
    by_name, by_class, by_object, other = (
        weights(fit("quickstart-at", loss=loss, settings=settings).path)
        for loss in ("test_fit:Squared", Squared, Squared(scale=1.0), Squared(scale=2.0))
    )
    assert_same(by_name, by_class)
    assert_same(by_name, by_object)
    assert any(not torch.equal(by_name[key], other[key]) for key in by_name)


def test_settings_that_name_code_take_the_object_itself(fit):
    chosen = {"data.limit": 100, "optim.epochs": 1}
    by_name, by_class = (
        weights(fit("quickstart-at", settings={**chosen, "mi.form": form, "optim.name": name}).path)
        for form, name in (
            ("test_fit:Sharp", "torch.optim:Adagrad"),
            (Sharp, torch.optim.Adagrad),
        )
    )
    assert_same(by_name, by_class)
    with pytest.raises(raymi.UserError, match="must be a subclass of raymi"):
        fit("quickstart-at", settings={**chosen, "mi.form": Squared})


def test_run_with_an_own_loss_continues_with_the_same_loss_only(fit):
    arguments = {"train": digits(), "name": "mine"}
    first = fit(loss=Squared(scale=2.0), **arguments)
    assert fit(loss=Squared(scale=2.0), **arguments).metrics == first.metrics
    with pytest.raises(raymi.UserError, match=r"begun with another loss.base \(loss\)"):
        fit(loss=Squared, **arguments)


def test_docstrings_list_the_losses_of_the_registry():
    for documented in (raymi.fit, raymi.NAMIDLoss):
        assert " | ".join(losses()) in documented.__doc__


def test_works_outside_of_the_main_thread(fit):
    results: list[raymi.FitResult] = []
    thread = threading.Thread(target=lambda: results.append(fit(settings={"data.limit": 100})))
    thread.start()
    thread.join()
    assert results


def test_progress_is_a_line_for_each_epoch_where_there_is_no_terminal(fit, capsys):
    fit(settings={"data.limit": 100}, callbacks=None)
    out = capsys.readouterr().out
    assert "1/2" in out
    assert "2/2" in out
    assert "\x1b" not in out
    fit(settings={"data.limit": 100})
    assert capsys.readouterr().out == ""


class Tuple(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Exits(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(3)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(digits())


class Augmented(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 8, 8), index % 2


IMAGES, LABELS = digits().tensors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": [1, 2]}, r"sample 0 of train must be \(image, label\), got int 1"),
        ({"train": Stream()}, "train must be a map-style torch Dataset .* got Stream"),
        ({"train": DataLoader(digits())}, "got a DataLoader: give its .dataset"),
        ({"train": Augmented()}, "remove random transforms, raymi augments"),
        ({"train": TensorDataset(IMAGES, LABELS + 1)}, "labels must be 0, 1, 2, ... without gaps"),
        ({"train": TensorDataset(IMAGES, LABELS / 1)}, "must be an integer 0, 1, 2, ..., got"),
        ({"train": TensorDataset(IMAGES * 255, LABELS)}, r"got \[0, 239.1\]: divide by 255"),
        ({"train": TensorDataset(IMAGES * 2 - 1, LABELS)}, "raw pixels without Normalize"),
        ({"train": TensorDataset(IMAGES.to(torch.uint8), LABELS)}, "nearly black"),
        ({"train": TensorDataset(IMAGES.long(), LABELS)}, "got int64: convert it"),
        ({"train": TensorDataset(IMAGES[:, :, :, None], LABELS)}, r"got \(1, 8, 1, 8\): drop"),
        ({"recipe": None, "train": digits()},
         "images of train have 8x8 pixels, and photos, .* add recipe=NAME; .* 16x16 .* quickstart"),
        ({"recipe": None, "settings": {"data.name": "svhn"}},
         "no recipe is made for data.name=svhn"),
        ({"test": digits()}, "val and test need train"),
        ({"train": digits(), "model": Tuple}, r"to logits \(2, 10\), got tuple"),
        ({"train": digits(), "model": Exits}, "SystemExit: 3"),
        ({"train": digits(), "model": Net(5, 8)}, r"to logits \(2, 10\), got \(2, 5\)"),
        ({"train": digits(), "model": lambda: Net(10, 8)}, "called with num_classes= and"),
        ({"loss": 3}, "must be a subclass of raymi.losses.AdversarialLoss, got int"),
        ({"loss": AdversarialLoss, "train": digits()}, "but NotImplementedError"),
        ({"loss": Squared(), "settings": {"loss.beta": 1}}, "has its settings already, got beta"),
        ({"loss": "no_such_module:Loss"}, "cannot import module 'no_such_module'"),
        ({"model": 3}, "model must be a torch.nn.Module, a function .* got int"),
        ({"settings": {"optim.epoch": 2}}, "unknown key 'optim.epoch': did you mean"),
        ({"settings": {"lr": -1}}, "optim.lr: expected number > 0"),
        ({"recipe": "quikstart"}, "did you mean quickstart"),
        ({"workers": -1}, "scaling.workers: expected"),
        ({"workers": 2, "settings": {"workers": 3}}, "scaling.workers is given 2 times"),
        ({"settings": {"lr": 1e30, "optim.schedule": "constant", "data.limit": 100}},
         "expected finite losses"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message(fit, arguments, message):
    with pytest.raises(raymi.UserError, match=message):
        fit(**arguments)
