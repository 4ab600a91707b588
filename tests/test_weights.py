"""Weights in files: equal content has equal bytes, and no flipped bit is read."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest
import safetensors
import tiny_runs
import torch
from safetensors.torch import load_file, save_file

from raymi import export, probe
from raymi.commands.find_model import find_model_source
from raymi.errors import UserError
from raymi.evaluation.exported_program import load_program
from raymi.evaluation.weight_files import read_weights
from raymi.runs.pretrained import load_weights, save_weights
from raymi.runs.run_folder import RunFolder
from raymi.weights import parse_weights, read_weights_file, weights_as_bytes

STATE = {
    "net.weight": torch.arange(6.0).reshape(2, 3),
    "net.half": torch.ones(3, dtype=torch.bfloat16),
    "net.steps": torch.tensor(7),
    "net.empty": torch.zeros(0, 4),
}
ABOUT = {"epoch": "3", "train_digest": "ab" * 32, "a": '"raymi.sha256":"', "z": "µ"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `mine`."""
    folder = tmp_path_factory.mktemp("home")
    run = RunFolder(folder / "runs" / "mine")
    settings = {"optim.epochs": 1, "probe.steps": 1, "validation.max_samples": 20}
    tiny_runs.tiny_run(0, 1, run.path, settings, [])
    run.write_config(tiny_runs.tiny_config(settings))
    return folder


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


def test_weights_are_read_with_metadata_by_any_reader_of_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_as_bytes(STATE, ABOUT))
    tensors, about = read_weights_file(path)
    assert same(tensors, STATE)
    assert list(tensors) == sorted(STATE)
    assert about.items() >= ABOUT.items()
    assert same(load_file(path), STATE)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == about


def test_equal_weights_have_equal_bytes_in_any_order():
    wanted = weights_as_bytes(STATE, ABOUT)
    for _ in range(20):  # safetensors' own order of metadata is another one each time
        turned = {key: STATE[key] for key in reversed(STATE)}
        about = {key: ABOUT[key] for key in reversed(ABOUT)}
        assert weights_as_bytes(turned, about) == wanted
    turned_over = {"a": torch.arange(6.0).reshape(3, 2).T}
    assert weights_as_bytes(turned_over) == weights_as_bytes({"a": turned_over["a"].contiguous()})


def test_a_flipped_bit_in_a_file_of_weights_is_refused():
    data = weights_as_bytes(STATE, ABOUT)
    for bit in range(8 * len(data)):
        with pytest.raises(UserError, match=r"best\.safetensors .*(damaged|another model)"):
            parse_weights(flipped(data, bit), "best.safetensors")
    for cut in range(0, len(data), 7):
        with pytest.raises(UserError):
            parse_weights(data[:cut], "best.safetensors")


def test_files_of_other_programs_have_no_checksum_and_are_read(tmp_path):
    path = tmp_path / "others.safetensors"
    save_file(STATE, path, {"format": "pt"})
    assert same(read_weights_file(path).tensors, STATE)
    assert same(read_weights(path), STATE)


def test_equal_runs_have_equal_files_of_weights(home, tmp_path):
    run = RunFolder(home / "runs" / "mine")
    settings = {"optim.epochs": 1, "probe.steps": 1, "validation.max_samples": 20}
    tiny_runs.tiny_run(0, 1, tmp_path / "again", settings, [])
    files = sorted(run.path.glob("*.safetensors"))
    assert {file.name for file in files} >= {"best.safetensors", "last.safetensors"}
    for file in files:
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_no_command_reads_a_damaged_model_of_a_run(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home)
    path = RunFolder(home / "runs" / "mine").weights("best")
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, 8 * len(whole) - 4))
    try:
        with pytest.raises(UserError, match="does not match the sha256 inside it"):
            find_model_source("mine", tiny_runs.tiny_config(), which="best")
        assert export.main(["model=mine", "which=best"]) == 2
        assert probe.main(["run=mine", "model=best"]) == 2
        assert capsys.readouterr().err.count(f"{path} is damaged") == 2
        assert not (home / "exports").exists()
    finally:
        path.write_bytes(whole)
    assert find_model_source("mine", tiny_runs.tiny_config(), which="best").source.load()


def test_damaged_or_foreign_weights_are_not_reused(tmp_path):
    path, net = tmp_path / "estimators.safetensors", torch.nn.Linear(3, 2)
    save_weights(path, net, {"train_digest": "d"})
    load_weights(path, torch.nn.Linear(3, 2), "d")
    with pytest.raises(UserError, match="trained on other images"):
        load_weights(path, net, "e")
    with pytest.raises(UserError, match=r"does not fit .*size mismatch"):
        load_weights(path, torch.nn.Linear(4, 2), "d")
    path.write_bytes(flipped(path.read_bytes(), 8 * 100))
    with pytest.raises(UserError, match="damaged"):
        load_weights(path, net, "d")


def test_a_damaged_checkpoint_or_file_of_torch_is_not_evaluated(home, tmp_path):
    checkpoint = next(iter(RunFolder(home / "runs" / "mine").checkpoints.iterdir()))
    data = checkpoint.read_bytes()
    bits = random.Random(0).sample(range(8 * len(data)), 20)
    place = tmp_path / checkpoint.name
    for bit in bits:
        place.write_bytes(flipped(data, bit))
        with pytest.raises(UserError, match=r"checkpoint .* is damaged"):
            read_weights(place)
    path = tmp_path / "w.pt"
    torch.save(STATE, path)
    data = path.read_bytes()
    refused = 0
    for bit in random.Random(1).sample(range(8 * len(data)), 200):
        path.write_bytes(flipped(data, bit))
        try:
            assert same(read_weights(path), STATE)  # of padding and dates of the archive
        except UserError:
            refused += 1
    assert refused > 20


def test_an_exported_program_with_a_flipped_bit_is_refused(tmp_path):
    net = torch.nn.Linear(3, 2).eval()
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.ones(2, 3),)), path)
    data, weight = path.read_bytes(), net.weight.detach().numpy().tobytes()
    assert load_program(data, "whole")
    with pytest.raises(UserError, match=r"is damaged: .*checksum"):
        load_program(flipped(data, 8 * data.index(weight) + 5), "net")


def test_an_exported_model_refuses_damaged_weights(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    folder = tmp_path / "exported"
    assert export.main(["model=mine", f"folder={folder}"]) == 0
    path = folder / "weights.pt"
    data = path.read_bytes()
    namespace = runpy.run_path(str(folder / "architecture.py"))
    assert namespace["load_model"](str(path))(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    path.write_bytes(flipped(data, 4 * len(data)))
    with pytest.raises(ValueError, match=r"weights\.pt is damaged"):
        namespace["load_model"](str(path))
