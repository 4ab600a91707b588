"""Model sources give the same classifier in any process, wherever it was found."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raymi.attacks.catalogue import Threat, find_attack
from raymi.attacks.execution import Batch, run_attack
from raymi.commands.find_model import FORMS, find_model_source, needs_data
from raymi.config import Config
from raymi.errors import UserError
from raymi.evaluation.exported_program import Program, load_program
from raymi.evaluation.model_source import (
    ModelSource,
    check_classifier,
    function_source,
    plain_name,
    program_source,
    raymi_source,
)
from raymi.evaluation.weight_files import read_weights
from raymi.models import architecture, build_model
from raymi.runs.run_folder import RunFolder

USER_NETS = """
import random
import numpy, torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

def spectral(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(3 * image_size**2, num_classes)))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))

def sized(image_size):
    random.random(), numpy.random.rand()
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 10))
    net[0].register_buffer("shift", torch.randn(1), persistent=False)
    net.register_forward_pre_hook(lambda net, x: (x[0] + net[0].shift,))
    return net

calls = []
def wider_each_time():
    calls.append(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, len(calls)))

def stateful():
    class WithState(nn.Linear):
        def get_extra_state(self): return "not a tensor"
        def set_extra_state(self, state): pass
    return nn.Sequential(nn.Flatten(), WithState(3 * 8 * 8, 10))

def one_by_one(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10), Squeeze())
class Squeeze(nn.Module):
    def forward(self, x): return x.squeeze(0)

def broken(): return nn.Linear(3, "ten")
def word(): return "a network"
"""


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run, with averaged weights."""
    return train(tmp_path_factory.mktemp("runs") / "tiny", {"optim.ema": 0.9})


@pytest.fixture
def user_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes a user's module, unique to the test, into the current folder."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    path = tmp_path / f"{name}.py"
    path.write_text(USER_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def train(path: Path, settings: dict[str, object]) -> RunFolder:
    folder = RunFolder(path)
    tiny_runs.tiny_run(0, 1, path, settings, [])
    folder.write_config(tiny_runs.tiny_config(settings))
    return folder


def original(folder: RunFolder, which: str) -> nn.Module:
    config, splits = folder.read_config(), tiny_runs.tiny_splits(folder.read_config())
    model = build_model(
        config.model.name, num_classes=10, image_size=8, mean=splits.mean, std=splits.std,
        width=config.model.width, depth=config.model.depth,
    )  # fmt: skip
    model.load_state_dict(load_file(folder.weights(which)))
    return model.eval()


def find(name: object, which: str | None = None, config: Config | None = None, **sizes: int):
    return find_model_source(str(name), config or tiny_runs.tiny_config(), which=which, **sizes)


SIZES = {"num_classes": 10, "image_size": 8}


def images(num: int = 5) -> torch.Tensor:
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, num: int = 2, dynamic: bool = True) -> bytes:
    shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
    program = torch.export.export(model.eval(), (images(num),), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def same(model: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(model(images()), other(images()))


@pytest.mark.parametrize("which", ["best", "last", "best-averaged", "last-averaged"])
def test_a_run_and_its_files_give_the_same_source(trained, which):
    by_run, by_file = find(trained.path, which), find(trained.weights(which))
    assert same(by_run.source.load(), original(trained, which))
    assert by_run.source == by_file.source
    assert by_run.source.name == f"tiny-{which}"
    assert by_file.folder is not None
    assert by_file.folder.path == trained.path
    assert by_file.config == by_run.config == trained.read_config()
    assert not by_file.source.load().training


def test_a_run_by_its_name_gives_the_chosen_model(trained):
    config = tiny_runs.tiny_config({"out": str(trained.path.parent)})
    journal = trained.journal.read_text().splitlines()
    chosen = [line for line in journal if '"chosen": true' in line]
    assert len(chosen) == 1
    name = find("tiny", config=config).source.name
    assert f'"which": "{name.removeprefix("tiny-")}"' in chosen[0]


def test_an_unfinished_run_has_checkpoints(trained, tmp_path):
    folder = RunFolder(shutil.copytree(trained.path, tmp_path / "cut"))
    for path in folder.path.glob("*.safetensors"):
        path.unlink()
    lines = folder.journal.read_text().splitlines(keepends=True)
    folder.journal.write_text("".join(line for line in lines if "evaluation" not in line))
    with pytest.raises(UserError, match="has no model best: let it finish, or name a checkpoint"):
        find(folder.path)
    newest = sorted(folder.checkpoints.iterdir())[-1]
    for which in ("last", "best", "last-averaged", "best-averaged", None):
        found = find(newest, which).source
        assert found.digest == find(trained.path, which or "last").source.digest
    assert find(newest).source.name.startswith("cut-step-000000")


def test_the_digest_depends_on_the_network_alone(trained):
    state, built_as = load_file(trained.weights("best")), architecture(
        "small-cnn", num_classes=10, image_size=8, width=0.5, depth=4
    )  # fmt: skip
    source = raymi_source("one", built_as, state)
    turned = {k: state[k] for k in reversed(state)}
    assert raymi_source("two", built_as, turned).digest == source.digest
    for key in ("net.classifier.bias", "normalize.std"):
        value = state[key].flatten()[0].nextafter(torch.tensor(9.0))
        changed = state[key].clone()
        changed.view(-1)[0] = value
        assert raymi_source("one", built_as, {**state, key: changed}).digest != source.digest
    full = architecture("small-cnn", num_classes=10, image_size=8, depth=4)
    assert raymi_source("one", full, state).digest != source.digest


def test_default_width_and_depth_equal_explicit_ones():
    plain = architecture("resnet18", num_classes=10, image_size=32)
    assert plain == architecture("resnet18", num_classes=10, image_size=32, width=1, depth=18)


@pytest.mark.parametrize("name", ["tied_net", "vector_net"])
def test_a_run_of_the_users_own_network_is_found(tmp_path, name):
    function = f"tiny_runs:{name}"
    settings = {"model.name": function, "model.width": None, "model.depth": None}
    folder = train(tmp_path / "own", settings)
    found = find(folder.path, "last")
    assert same(found.source.load(), original(folder, "last"))
    assert found.source.digest == find(folder.weights("last")).source.digest


def test_parametrized_networks_are_found(user_nets, tmp_path):
    function = f"{user_nets.stem}:spectral"
    model = build_model(function, **SIZES, mean=[0.4] * 3, std=[0.3] * 3)
    model(images())  # moves the vectors of spectral norm
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "model": {"state_dict": model.state_dict()}}, path)
    config = Config.model_validate({"model": {"name": function}})
    assert needs_data(str(path), config)
    found = find(path, config=config, **SIZES)
    assert same(found.source.load(), model.eval())
    assert (found.config, found.folder) == (None, None)
    with pytest.raises(ValueError, match="give num_classes"):
        find(path, config=config)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_of_others_are_built_from_the_settings(trained, tmp_path, suffix):
    state = load_file(trained.weights("best"))
    path = tmp_path / f"copy{suffix}"
    wrapped = {f"module.{k}": v for k, v in state.items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(wrapped, path)
    (tmp_path / "config.json").write_text("{}")  # of something else than raymi
    found = find(path, **SIZES).source
    assert found.name == "copy"
    assert found.digest == find(trained.path, "best").source.digest
    other = tiny_runs.tiny_config({"model.depth": 7})
    with pytest.raises(UserError, match=r"do not fit name=small-cnn.*model\.depth"):
        find(path, config=other, **SIZES).source.load()
    with pytest.raises(UserError, match="one model: leave out last"):
        find(path, "last", **SIZES)


def test_weights_without_normalisation_are_refused(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(UserError, match=r"normalize.mean.*model=module:function"):
        find(path, **SIZES)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"a": torch.ones(1)}, "more": Evil(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match="would run code"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_refusals_of_files_name_their_content(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"epoch": 1, "lr": 0.1}, path)
    with pytest.raises(UserError, match=r"expected a state dict.*got dict epoch, lr"):
        read_weights(path)
    path.write_bytes(b"half a fi")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(path)
    (tmp_path / "x.safetensors").write_bytes(b"half a fi")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "x.safetensors")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(UserError, match=r"name that ends in \.safetensors, \.pt"):
        find(tmp_path / "x.csv")


def test_functions_get_their_parameters_and_random_state_does_not_change(user_nets):
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for function in ("plain", "sized", "spectral"):
        name = f"{user_nets.stem}:{function}"
        assert needs_data(name, tiny_runs.tiny_config())
        source = find(name, **SIZES).source
        assert source.name == f"{user_nets.stem}-{function}"
        assert same(source.load(), source.load())
        assert source == find(name, **SIZES).source
        check_classifier(name, source.load(), **SIZES)
    assert torch.equal(state[0], torch.get_rng_state())
    assert random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]  # noqa: NPY002


def test_functions_get_raw_images(user_nets):
    name = f"{user_nets.stem}:plain"
    model = function_source(name, **SIZES).load()
    assert same(model, nn.Sequential(nn.Flatten(), model[1]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("plane", "no function 'plane'"),
        ("broken", r"cannot be built: TypeError.*nets_.*\.py:\d+"),
        ("word", "must return a torch.nn.Module, got str"),
        ("stateful", r"tensors alone, got 1._extra_state \(str\)"),
        ("wider_each_time", "makes another network at each call"),
    ],
)
def test_errors_of_functions_are_one_line(user_nets, function, message):
    with pytest.raises(UserError, match=message) as refusal:
        find(f"{user_nets.stem}:{function}", **SIZES).source.load()
    assert "\n" not in str(refusal.value)


def test_a_function_that_changed_is_refused(user_nets):
    source = function_source(f"{user_nets.stem}:plain", **SIZES)
    user_nets.write_text(USER_NETS + "\n# another line\n")
    with pytest.raises(UserError, match="is not the classifier that was found"):
        source.load()


def test_changed_weights_are_refused(trained):
    source, other = (find(trained.path, which).source for which in ("best", "best-averaged"))
    assert source.digest != other.digest
    with pytest.raises(UserError, match="is not the classifier that was found"):
        dataclasses.replace(source, weights=other.weights).load()


def test_outputs_are_checked_on_two_images_and_on_one(user_nets, trained):
    model = find(trained.path).source.load()
    with pytest.raises(UserError, match=r"logits \(2, 100\), got \(2, 10\)"):
        check_classifier("mine", model, 100, 8)
    squeezing = function_source(f"{user_nets.stem}:one_by_one", **SIZES).load()
    with pytest.raises(UserError, match=r"logits \(1, 10\), got \(10,\)"):
        check_classifier("mine", squeezing, 10, 8)
    frozen = load_program(exported(original(trained, "best"), dynamic=False), "frozen")
    with pytest.raises(UserError, match=r"images \(1, 3, 8, 8\)"):
        check_classifier("frozen", frozen, 10, 8)


def test_an_unknown_name_is_refused_with_suggestions(trained):
    config = tiny_runs.tiny_config({"out": str(trained.path.parent)})
    with pytest.raises(UserError) as refusal:
        find("tinny", config=config)
    assert "no file 'tinny', and no run 'tinny'" in str(refusal.value)
    assert "newest runs there: tiny" in str(refusal.value)
    assert FORMS in str(refusal.value)
    with pytest.raises(UserError, match="did you mean best"):
        find("tiny", "bets", config=config)
    with pytest.raises(UserError, match="cannot import module"):
        find("no_such_module:net", config=config, **SIZES)


FRESH = """
import pickle, sys, torch
sources = pickle.load(open(sys.argv[1], "rb"))
x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
torch.save([source.load()(x).detach() for source in sources], sys.argv[2])
"""


def test_sources_can_be_sent_to_other_processes(trained, user_nets, tmp_path):
    program = program_source("program", exported(original(trained, "best")))
    function = function_source(f"{user_nets.stem}:sized", **SIZES)
    sources = [find(trained.path, "best").source, function, program]
    file, out = tmp_path / "sources.pickle", tmp_path / "logits.pt"
    file.write_bytes(pickle.dumps(sources))
    paths = os.pathsep.join([str(Path(tiny_runs.__file__).parents[1]), str(tmp_path)])
    subprocess.run(
        [sys.executable, "-c", FRESH, str(file), str(out)], check=True, timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    for source, logits in zip(sources, torch.load(out), strict=True):
        assert torch.equal(logits, source.load()(images()).detach())


def test_a_program_behaves_as_its_network(trained, tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(exported(original(trained, "best")))
    assert not needs_data(str(path), tiny_runs.tiny_config())
    program, model = find(path).source.load(), original(trained, "best")
    assert isinstance(program, Program)
    for num in (1, 2, 7):
        x, same_x = images(num).requires_grad_(), images(num).requires_grad_()
        logits, expected = program(x), model(same_x)
        torch.testing.assert_close(logits, expected)
        logits.square().sum().backward()
        expected.square().sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, same_x.grad)
    before = program(images())
    assert program.train().training
    assert torch.equal(program(images()), before)
    assert not nn.Sequential(program).eval()[0].training
    assert torch.equal(program(images()), before)


@pytest.mark.parametrize("attack", ["pgd-3", "apgd-ce"])
def test_attacks_on_programs_equal_attacks_on_the_network(trained, attack):
    model = original(trained, "best")
    program = program_source("program", exported(model)).load()
    before = {k: v.clone() for k, v in program.state_dict().items()}
    flags = [module.training for module in program.modules()]
    x = images(4)
    batch = Batch(x, model(x).argmax(dim=1), torch.arange(4), 0)
    threat = Threat("linf", 0.1)
    found = run_attack(find_attack(attack), program, batch, threat)
    expected = run_attack(find_attack(attack), model, batch, threat)
    assert torch.equal(found.broken, expected.broken)
    torch.testing.assert_close(found.x_adv, expected.x_adv)
    assert all(torch.equal(v, before[k]) for k, v in program.state_dict().items())
    assert [module.training for module in program.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in program.parameters())


class MakesTensors(nn.Module):
    """Network whose exported graph names a device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 192))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T + torch.arange(10, device=x.device)


def test_a_program_moves_with_the_tensors_that_its_graph_creates():
    program = load_program(exported(MakesTensors()), "moving")
    program.requires_grad_(False)
    moved = program.to("meta")
    assert moved is program
    assert moved(images().to("meta")).device.type == "meta"
    assert not any(parameter.requires_grad for parameter in moved.parameters())


def test_programs_that_would_run_code_are_refused(trained, tmp_path):
    data = exported(original(trained, "best"))
    evil = io.BytesIO()
    torch.save({"x": Evil(tmp_path / "ran")}, evil)
    compiled, pickled = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as there:
        names = there.namelist()
        root = names[0].split("/")[0]
        inputs = [name for name in names if "sample_inputs" in name]
        assert inputs
        with zipfile.ZipFile(compiled, "w") as to:
            for name in names:
                to.writestr(name, there.read(name))
            to.writestr(f"{root}/data/aotinductor/model/x.so", b"")
        with zipfile.ZipFile(pickled, "w") as to:
            for name in names:
                to.writestr(name, evil.getvalue() if name in inputs else there.read(name))
    for file, message in ((compiled, "would run code"), (pickled, "without pickle")):
        with pytest.raises(UserError, match=message):
            load_program(file.getvalue(), "evil")
    with pytest.raises(UserError, match="half is damaged"):
        load_program(data[: len(data) // 2], "half")
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_plain_names_are_safe_for_files():
    assert plain_name("raymi-digits@champion") == "raymi-digits-champion"
    assert plain_name("../my nets/θ:net") == "my-nets-net"
    assert plain_name("@") == "model"
    assert len(plain_name("x" * 300)) == 80
    assert ModelSource("a", {"kind": "program"}, b"secret", "0").__repr__().find("secret") == -1
