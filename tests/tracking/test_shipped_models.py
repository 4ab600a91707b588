"""A logged model in an environment that has no raymi: it loads without pickle, classifies, can be
attacked, and answers over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from mlflow_server import wait_for
from mlflow_store import client
from ports import free_ports
from raymi_command import environment, events

from raymi.commands.find_model import find_model_source
from raymi.data.augment import to_unit

pytestmark = pytest.mark.slow

LOADED = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "raymi":
            raise ImportError("raymi is not installed here")

sys.meta_path.insert(0, Blocked())
import mlflow, numpy, torch

model = mlflow.pytorch.load_model("models:/tiny/1")
x = torch.from_numpy(numpy.load("images.npy"))
y = torch.from_numpy(numpy.load("labels.npy"))
eps = 0.2

def loss_of(images):
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(images), y).item()

delta = torch.zeros_like(x)
for _ in range(10):
    delta.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(x + delta), y)
    (gradient,) = torch.autograd.grad(loss, delta)
    delta = (delta.detach() + eps / 4 * gradient.sign()).clamp(-eps, eps)
    delta = (x + delta).clamp(0, 1) - x
print(json.dumps({
    "logits": model(x).tolist(), "loss": loss_of(x), "attacked": loss_of(x + delta),
    "one": list(model(x[:1]).shape),
    "raymi": sorted(name for name in sys.modules if name.split(".")[0] == "raymi"),
}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the packages of this one, and without raymi."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def fresh(home: Path) -> dict[str, str]:
    """Where packages are; files that install raymi from a checkout are not read from there."""
    return environment(
        PYTHONPATH=sysconfig.get_path("purelib"),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        MLFLOW_TRACKING_URI=f"sqlite:///{home / 'mlflow.db'}",
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )


def ours(images: torch.Tensor) -> np.ndarray:
    """The logits of the run's own classifier."""
    model = find_model_source("mine", tiny_runs.tiny_config()).source.load()
    with torch.no_grad():
        return model(images).numpy()


def test_it_classifies_and_is_attacked_where_nothing_of_raymi_is(finished, python, tmp_path):
    test = tiny_runs.tiny_splits(tiny_runs.tiny_config()).test
    images = to_unit(test.images[:30])
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "labels.npy", test.labels[:30].numpy())
    done = subprocess.run(
        [python, "-c", LOADED],
        cwd=tmp_path,
        env=fresh(finished),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(told["logits"], ours(images), rtol=1e-4, atol=1e-4)
    assert told["attacked"] > told["loss"] + 0.1
    assert told["one"] == [1, 10], "batches of any size"
    assert told["raymi"] == []


@pytest.mark.exhaustive
def test_it_answers_over_http(finished, python, tmp_path):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/tiny/1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=fresh(finished), stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, log)
        test = tiny_runs.tiny_splits(tiny_runs.tiny_config()).test
        images = to_unit(test.images[:4])
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            logits = json.load(answer)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert np.array(logits).shape == (4, 10)
    np.testing.assert_allclose(logits, ours(images), rtol=1e-4, atol=1e-4)


def test_its_card_says_what_it_is_how_to_use_it_and_what_is_doubtful(finished):
    (version,) = client().search_model_versions("name = 'tiny'")
    card = version.description
    (best,) = [e for e in events(finished / "runs" / "mine", "evaluation") if e["chosen"]]
    assert 'mlflow.pytorch.load_model("models:/tiny/1")' in card
    assert "L_inf eps 0.2" in card
    assert f"| {best['num']} of digits-test | L_inf eps 0.2 | clean | {best['clean']:.1%} (" in card
    assert f"| pgd-2-of-training | {best['robust']:.1%} (" in card
    assert "Not looked for yet: `python -m raymi.evaluate model=models:/m-" in card
    model = version.source.removeprefix("models:/")
    names = [file.path for file in client().list_logged_model_artifacts(model)]
    assert {"MODEL_CARD.md", "MLmodel", "requirements.txt"} <= set(names)
