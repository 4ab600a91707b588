"""A run starts from given weights, keeps a copy of them, and refuses those of another network."""

from __future__ import annotations

import hashlib

import pytest
import torch
from gloo import run_ranks
from tiny_runs import tiny_config, tiny_splits

from raymi.engine.context import LocalContext
from raymi.engine.initial_weights import split_weights
from raymi.engine.loop import train
from raymi.errors import UserError
from raymi.models import build_model
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.weights import read_weights_file, weights_as_bytes

STILL = {"mi.weight": 0, "optim.lr": 1e-20, "optim.epochs": 1, "optim.weight_decay": 0}
"""Training that leaves the weights as they are."""


def given(seed=5, **changes):
    """A classifier of the tiny run's network."""
    torch.manual_seed(seed)
    model = {"name": "small-cnn", "width": 0.5, "depth": 4, **changes}
    return build_model(**model, num_classes=10, image_size=8, mean=(0.3,) * 3, std=(0.4,) * 3)


def new_folder(path):
    path.mkdir()
    return RunFolder(path)


def start_of(folder):
    return next(e for e in JournalReader(folder.journal).new_events() if e["kind"] == "start")


def convolutions(state):
    return {key: value for key, value in state.items() if key.endswith("weight")}


def trained(file, folder, settings=None):
    config = tiny_config({**STILL, "model.weights": str(file), **(settings or {})})
    train(config, LocalContext(), folder)
    return read_weights_file(folder.weights("last")).tensors


@pytest.mark.parametrize("kind", ["safetensors", "torch", "net alone"])
def test_training_starts_from_the_weights_of_a_file(tmp_path, kind):
    model, file = given(), tmp_path / "given.pt"
    if kind == "safetensors":
        file = tmp_path / "given.safetensors"
        file.write_bytes(weights_as_bytes(model.state_dict()))
    else:
        part = model if kind == "torch" else model.net
        torch.save({"state_dict": {f"module.{k}": v for k, v in part.state_dict().items()}}, file)
    last = trained(file, folder := new_folder(tmp_path / "run"))
    for key, value in convolutions(model.state_dict()).items():
        torch.testing.assert_close(last[key], value, rtol=0, atol=1e-12)
    mean = tiny_splits(tiny_config()).mean if kind == "net alone" else (0.3,) * 3
    assert last["normalize.mean"].flatten().tolist() == pytest.approx(mean)
    digest = hashlib.sha256(folder.initial.read_bytes()).hexdigest()
    assert start_of(folder)["initial_weights"] == digest


def test_a_staged_run_starts_both_classifiers_from_the_weights_and_needs_the_file_once(tmp_path):
    file = tmp_path / "given.safetensors"
    file.write_bytes(weights_as_bytes(given().state_dict()))
    staged = {**STILL, "mi.weight": 1.0, "mi.balance": None, "mi.schedule": "staged",
              "optim.lr": 0.05, "optim.epochs": 2}  # fmt: skip
    config = tiny_config({**staged, "model.weights": str(file)})
    whole, broken = new_folder(tmp_path / "whole"), new_folder(tmp_path / "broken")
    train(config, LocalContext(), whole)
    train(config, LocalContext(), broken, until="pretraining", until_epoch=1)
    file.unlink()
    train(config, LocalContext(), broken)
    assert whole.weights("last").read_bytes() == broken.weights("last").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 7}, r"do not fit small-cnn: keys do not match: .*unexpected"),
        ({"width": 1.0}, r"has shape \(16, 3, 3, 3\), expected \(8, 3, 3, 3\)"),
    ],
)
def test_weights_of_another_network_are_refused_before_the_first_step(tmp_path, changes, message):
    file = tmp_path / "given.pt"
    torch.save(given(**changes).state_dict(), file)
    with pytest.raises(UserError, match=message) as raised:
        trained(file, folder := new_folder(tmp_path / "run"))
    assert "model.weights=" in str(raised.value)
    assert not folder.checkpoints.exists()


def test_one_of_several_models_is_named_after_a_hash(tmp_path):
    file = tmp_path / "both.pt"
    torch.save({"a": given(1).state_dict(), "b": given(2).state_dict()}, file)
    with pytest.raises(UserError, match=r"such as model\.weights=.*both\.pt#b"):
        trained(file, new_folder(tmp_path / "none"))
    last = trained(f"{file}#b", new_folder(tmp_path / "run"))
    key = "net.features.0.weight"
    torch.testing.assert_close(last[key], given(2).state_dict()[key], rtol=0, atol=1e-12)


def test_a_hash_in_the_name_of_a_file_is_part_of_it(tmp_path):
    file = tmp_path / "a#b.pt"
    assert split_weights(str(file)) == (tmp_path / "a", "b.pt")
    file.touch()
    assert split_weights(str(file)) == (file, None)


def on_ranks(rank, world_size, settings, folder):
    train(tiny_config(settings), LocalContext(), RunFolder(folder))
    return read_weights_file(RunFolder(folder).weights("last")).tensors


@pytest.mark.slow
def test_workers_start_from_the_same_weights(tmp_path):
    file = tmp_path / "given.pt"
    torch.save(given().state_dict(), file)
    folder = new_folder(tmp_path / "run")
    settings = {**STILL, "model.weights": str(file)}
    (tmp_path / "ranks").mkdir()
    for last in run_ranks(on_ranks, 2, settings, folder.path, tmp_path=tmp_path / "ranks"):
        for key, value in convolutions(given().state_dict()).items():
            torch.testing.assert_close(last[key], value, rtol=0, atol=1e-12)
