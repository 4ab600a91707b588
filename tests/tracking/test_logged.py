"""Classifiers found in a real MLflow store, without unpickling anything."""

from __future__ import annotations

import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from mlflow_store import client
from torch import nn

from raymi.commands.find_model import LocatedModel, find_model_source, needs_data
from raymi.commands.initial_weights import resolve_weights
from raymi.errors import UserError
from raymi.evaluation.exported_program import Program
from raymi.tracking import store
from raymi.weights import read_weights_file

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def here(finished: Path) -> Path:
    """A folder with a finished run, whose chosen model is the champion of `tiny`."""
    client().set_registered_model_alias("tiny", "champion", "1")
    return finished


def find(name: str, **more: Any) -> LocatedModel:
    return find_model_source(name, tiny_runs.tiny_config(), **more)


def images(num: int = 5) -> torch.Tensor:
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def log(model: nn.Module, **how: Any) -> Any:
    """Model that another program logged."""
    example = np.full((2, 3, 8, 8), 0.5, dtype=np.float32)
    with store.use_store(store.tracking_uri(Path.cwd())):
        return mlflow.pytorch.log_model(
            model.eval(), name="theirs", input_example=example, pip_requirements=["torch"], **how
        )


def other_net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def test_every_address_of_a_logged_model_gives_the_model_of_its_run(here):
    of_run = find("mine", which="best")
    assert of_run.uri == store.tracking_uri(here)
    assert of_run.model_id is not None
    addresses = ["models:/tiny@champion", "models:/tiny/1", f"models:/{of_run.model_id}"]
    for address in [*addresses, f"runs:/{of_run.run_id}/best"]:
        assert not needs_data(address, tiny_runs.tiny_config())
        found = find(address)
        assert found.source.digest == of_run.source.digest
        assert found.source.build["kind"] == "raymi"
        assert (found.uri, found.run_id, found.model_id) == (
            of_run.uri, of_run.run_id, of_run.model_id,
        )  # fmt: skip
        assert found.config == of_run.config
        assert found.folder is None
    assert find(addresses[0]).source.name == "tiny-champion"
    assert torch.equal(found.source.load()(images()), of_run.source.load()(images()))
    assert found.variant is None
    last = find("mine", which="last")
    of_last = find(f"models:/{last.model_id}")
    assert (of_last.source.digest, of_last.variant) == (last.source.digest, "last")
    with pytest.raises(UserError, match="is one model: leave out last"):
        find("models:/tiny/1", which="last")


def test_a_logged_model_becomes_a_file_to_start_training_from(here):
    def resolved(**model):
        config = tiny_runs.tiny_config({f"model.{key}": value for key, value in model.items()})
        config, problems = resolve_weights(config)
        return config.model.weights, problems

    path, problems = resolved(weights="models:/tiny/1")
    assert problems == []
    assert Path(path).parent == here / "weights"
    theirs = torch.load(BytesIO(find("models:/tiny/1").source.weights), weights_only=True)
    ours = read_weights_file(Path(path)).tensors
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert resolved(weights="models:/tiny@champion", depth=7)[1] == [
        "model.weights: models:/tiny@champion is of another network: expected model.depth=7, got 4."
        " Set model.depth=4"
    ]
    info = log(other_net(), serialization_format="pt2")
    (problem,) = resolved(weights=f"models:/{info.model_id}")[1]
    assert "is a program without the names of its weights" in problem


def test_finding_does_not_change_mlflow(here):
    before = dict(os.environ), mlflow.is_tracking_uri_set()
    find("models:/tiny/1")
    assert before == (dict(os.environ), mlflow.is_tracking_uri_set())


def test_other_models_are_loaded_as_exported_programs(here):
    model = other_net()
    info = log(model, serialization_format="pt2")
    found = find(f"models:/{info.model_id}")
    program = found.source.load()
    assert isinstance(program, Program)
    torch.testing.assert_close(program(images()), model(images()))
    assert found.config is None
    assert found.model_id == info.model_id


def test_pickled_models_are_refused(here):
    info = log(other_net(), serialization_format="pickle")
    with pytest.raises(UserError, match=r"would need pickle.*serialization_format=.pt2") as refusal:
        find(f"models:/{info.model_id}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    [
        "models:/tiny@chmpion",
        "models:/tiny/7",
        "models:/tyni/1",
        "models:/m-0123",
        "models:/tiny",
        "models:/",
        "runs:/0123/best",
        "runs:/0123",
    ],
)
def test_a_missing_model_is_refused_in_one_line(here, address):
    with pytest.raises(UserError, match="cannot get") as refusal:
        find(address)
    assert "\n" not in str(refusal.value)
    assert address in str(refusal.value)
    assert ("did you mean tiny?" in str(refusal.value)) == (address == "models:/tyni/1")


def test_a_store_that_does_not_answer_is_named_without_its_password(here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"from MLflow at http://127.0.0.1:9 ") as refusal:
        find("models:/tiny/1")
    assert "s3cret" not in str(refusal.value)


def test_a_missing_store_is_not_created(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"there is no MLflow store .*: set MLFLOW_TRACKING_URI"):
        find("models:/tiny/1")
    assert not list(tmp_path.iterdir())


def test_a_model_is_found_without_the_configuration_of_its_run(here, tmp_path, monkeypatch):
    kept = find("models:/tiny/1")
    (config,) = (here / "mlruns").glob(f"{kept.run_id}/artifacts/config.json")
    shutil.move(config, tmp_path)
    try:
        found = find("models:/tiny/1")
    finally:
        shutil.move(tmp_path / "config.json", config)
    assert found.config is None
    assert found.source == kept.source
