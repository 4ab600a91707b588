"""State dicts of other projects are read below any wrapper; ambiguous files are refused."""

from __future__ import annotations

import argparse
import itertools
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raymi.commands.find_model import find_model_source, needs_data
from raymi.errors import UserError
from raymi.evaluation.weight_files import read_weights
from raymi.models import build_model

SIZES = {"num_classes": 10, "image_size": 8}
NORM = {"mean": [0.4] * 3, "std": [0.3] * 3}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("small-cnn", width=0.5, depth=4, **SIZES, **NORM).eval()


def found(path, which=None, **settings) -> dict[str, Tensor]:
    config = tiny_runs.tiny_config(settings)
    return find_model_source(str(path), config, which=which, **SIZES).source.load().state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


PREFIXES = [
    "".join(order)
    for num in (1, 2, 3)
    for order in itertools.permutations(("module.", "_orig_mod.", "net.", "model."), num)
] + ["module.module.", "net.net.", "_orig_mod.module._orig_mod.net."]
KEYS = ["state_dict", "model_state_dict", "model_state", "model", "net", "params", "ema",
        "ema_state_dict", "network", "weights", "anything"]  # fmt: skip


def test_prefixes_in_any_order_are_removed(model, tmp_path):
    state, path = model.state_dict(), tmp_path / "w.pt"
    for prefix in PREFIXES:
        torch.save(prefixed(state, prefix), path)
        assert same(found(path), state), prefix


def test_wrappers_between_parts_of_keys_are_removed(model, tmp_path):
    state, path = model.state_dict(), tmp_path / "w.pt"
    for wrapper in ("net.module.", "net._orig_mod.", "net.module._orig_mod."):
        inner = {key.replace("net.", wrapper, 1): value for key, value in state.items()}
        torch.save(prefixed(inner, "model."), path)
        assert same(found(path), state), wrapper


def test_state_dicts_are_found_under_any_name_and_in_two_levels(model, tmp_path):
    state, path = model.state_dict(), tmp_path / "w.pt"
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    beside = {"epoch": 3, "best_acc": 0.5, "optimizer": optimizer.state_dict(), "name": "x"}
    for outer in KEYS:
        torch.save({**beside, outer: prefixed(state, "module.")}, path)
        assert same(found(path), state), outer
    for outer in KEYS[:3]:
        for inner in ("state_dict", "ema"):
            torch.save({**beside, outer: {inner: OrderedDict(state), "decay": 0.99}}, path)
            assert same(found(path), state), (outer, inner)


def test_averaged_models_of_torch_are_read(model, tmp_path):
    path = tmp_path / "swa.pt"
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), path)
    assert same(found(path), model.state_dict())
    torch.save({"ema": prefixed(averaged.state_dict(), "")}, path)
    assert same(found(path), model.state_dict())
    flat = {"n_averaged": torch.tensor(3), **model.state_dict()}
    torch.save({"state_dict": flat}, path)
    assert same(found(path), model.state_dict())


def other_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def test_the_user_selects_one_of_several_models(model, tmp_path):
    state, path = model.state_dict(), tmp_path / "both.pt"
    average = other_values(state)
    for content, names in (
        ({"model": state, "ema": average}, ("model", "ema")),
        ({"a": {"model": state, "ema_state_dict": average}}, ("a.model", "a.ema_state_dict")),
        (
            {**prefixed(state, "online_model."), **prefixed(average, "ema_model.")},
            ("online_model", "ema_model"),
        ),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"several models: .*which="):
            found(path)
        for name, expected in zip(names, (state, average), strict=True):
            assert same(found(path, name), expected)
        with pytest.raises(UserError, match=f"has no model bets: it has {names[0]}"):
            found(path, "bets")
    torch.save({"model": state, "ema": dict(state)}, path)
    assert same(found(path), state), "two equal models are one"
    torch.save({"model": state, "criterion": {"weight": torch.ones(10)}}, path)
    assert same(found(path), state), "only one of them is the network's"
    torch.save({"model": state, "ema": average}, path)
    with pytest.raises(UserError, match="several models"):
        read_weights(path)


@pytest.mark.parametrize(
    "name", ["w.pth.tar", "w.ckpt", "w.PT", "w.Pth", "w.pt.tar", "w.bin", "w.SAFETENSORS"]
)
def test_usual_suffixes_are_accepted_in_any_case(name, model, tmp_path):
    path, state = tmp_path / name, model.state_dict()
    save_file(state, path) if "SAFE" in name else torch.save({"state_dict": state}, path)
    assert needs_data(str(path), tiny_runs.tiny_config())
    source = find_model_source(str(path), tiny_runs.tiny_config(), **SIZES).source
    assert source.name == "w"
    assert same(source.load().state_dict(), state)


def test_a_file_is_read_by_its_content(model, tmp_path):
    state = model.state_dict()
    save_file(state, tmp_path / "w.pt")
    assert same(found(tmp_path / "w.pt"), state)


def test_a_mismatch_names_keys_or_shapes(model, tmp_path):
    state, path = model.state_dict(), tmp_path / "w.pt"
    key = next(key for key in state if key.endswith("weight"))
    for content, message in (
        ({k: v for k, v in state.items() if k != key}, f"keys do not match: missing {key}"),
        ({**state, "net.more": torch.ones(1)}, "keys do not match: unexpected net.more"),
        ({**state, key: torch.ones(2, 5)}, rf"{key} has shape \(2, 5\), expected \("),
        ({**state, key: state[key].char()}, rf"{key} is of torch.int8, expected torch.float32"),
        ({**state, key: state[key].to_sparse()}, f"{key} is sparse or quantized, expected a dense"),
        ({**state, key: state[key] / 0}, f"{key} has NaN or infinite values"),
        (
            {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")},
            "missing normalize.mean, normalize.std. Set",
        ),
    ):
        torch.save({"state_dict": content}, path)
        with pytest.raises(UserError, match=message) as refusal:
            found(path)
        assert "not trained by raymi" not in str(refusal.value)
        assert "\n" not in str(refusal.value)
    torch.save({"state_dict": state}, path)
    with pytest.raises(UserError, match=r"do not fit name=small-cnn.*keys do not match: missing"):
        found(path, **{"model.depth": 7})


def test_other_precisions_are_read(model, tmp_path):
    state, path = model.state_dict(), tmp_path / "w.pt"
    for kind in (torch.float64, torch.float16):
        torch.save({k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}, path)
        loaded = found(path)
        key = "normalize.mean"
        assert loaded[key].dtype == torch.float32
        torch.testing.assert_close(loaded[key], state[key], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("value", "named"), [(argparse.Namespace(lr=1), "argparse.Namespace"), (np.float64(1), "numpy")]
)
def test_a_refusal_of_objects_names_them_and_the_remedy(value: Any, named, model, tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": model.state_dict(), "args": value}, path)
    with pytest.raises(UserError, match=rf"{named}.*weights_only=False.*\['state_dict'\]"):
        found(path)


def test_programs_with_the_suffix_of_weights_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.jit.script(nn.Linear(3, 2)).save(path)
    with pytest.raises(UserError, match="program of TorchScript, expected a state dict"):
        found(path)
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.ones(2, 3),)), tmp_path / "p.pt2")
    (tmp_path / "p.pt2").rename(path)
    with pytest.raises(UserError, match=r"program of torch.export.*\.pt2"):
        found(path)
