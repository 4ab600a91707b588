"""`model.weights` names a file, a run or a model in MLflow; commands turn it into a file."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import TINY, tiny_config

from raymi.commands.initial_weights import resolve_runs, resolve_weights
from raymi.commands.train.options import requested
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder

NET = {"model.name": "small-cnn", "model.width": 0.5, "model.depth": 4}
ARE = [f"{key}={value}" for key, value in NET.items()]


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a finished run `runs/first` in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config({**TINY, "mi.weight": 0, "optim.epochs": 1})
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.path.mkdir(parents=True)
    folder.write_config(config)
    train(config, LocalContext(), folder)
    return folder


def resolved(weights, **model):
    net = {key.partition(".")[2]: value for key, value in NET.items()} | model
    config = tiny_config({f"model.{key}": value for key, value in net.items()})
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"weights": str(weights)})}
    )
    config, problems = resolve_weights(config)
    return config.model.weights, problems


def test_a_run_becomes_the_file_of_its_chosen_model(finished):
    assert resolved("first") == (str(finished.weights("best")), [])
    assert resolved("first#last") == (str(finished.weights("last")), [])
    assert resolved(finished.path) == (str(finished.weights("best")), [])


def test_a_relative_file_becomes_absolute(finished):
    torch.save({}, "own.pt")
    assert resolved("own.pt") == (str(finished.path.parents[1] / "own.pt"), [])


def test_weights_of_a_run_with_another_network_are_refused_with_the_settings_to_set(finished):
    for name in ("first", "runs/first/last.safetensors"):
        _, (problem,) = resolved(name, depth=7)
        assert problem.endswith(
            "is of another network: expected model.depth=7, got 4. Set model.depth=4"
        )


def test_missing_weights_are_refused_by_the_command_itself(finished):
    with pytest.raises(UserError, match=r"no file 'nothing', .*model.weights takes a file"):
        requested(["recipe=quickstart", "model.weights=nothing"])
    with pytest.raises(UserError, match=r"model.weights: expected a file of weights .* got my:net"):
        requested(["recipe=quickstart", "model.weights=my:net"])
    request = requested(["recipe=quickstart", *ARE, "model.weights=first", "tracking.enabled=no"])
    assert request.config.model.weights == str(finished.weights("best"))


def test_a_run_with_its_copy_does_not_need_the_weights_again(finished):
    (finished.path / "initial.safetensors").touch()
    config = tiny_config({**TINY, "name": "first", "model.weights": "gone.pt"})
    resolved, problems = resolve_runs(config)
    assert problems == []
    assert resolved.model.weights == str(finished.path.parents[1] / "gone.pt")
