"""Faults of user input are one clear message, also where only the workers can find them."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_head import Head
from raymi_command import TINY, finish, start

from raymi import train

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def write_image_folder(root: Path) -> Path:
    """Writes two classes of 16 images for training and 4 for testing."""
    rng = np.random.default_rng(0)
    for part, num in (("train", 16), ("test", 4)):
        for name in ("bright", "dark"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for k in range(num):
                low = 128 if name == "bright" else 0
                pixels = rng.integers(low, low + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return root


PRINTS_THREADS = """
import threading
import ray
shut_down = ray.shutdown
def shutdown(*args, **kwargs):
    print("at the end of Ray:", *(thread.name for thread in threading.enumerate()))
    shut_down(*args, **kwargs)
ray.shutdown = shutdown
"""
"""Content of `sitecustomize`, which every Python imports as it starts."""


def write_broken_image(folder: Path) -> list[str]:
    """Writes images of which one is corrupt; returns the words of a command that trains on them."""
    images = write_image_folder(folder / "images with a space")
    broken = images / "train" / "dark" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    words = (*TINY, "data.name=folder", f"data.root={images}", "batch_size=8")
    return [*words, "tracking.enabled=false"]


@pytest.mark.exhaustive
def test_a_corrupt_image_ends_the_run_with_its_name(
    joined_ray: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMI_CACHE", str(tmp_path / "cache"))
    assert train.main([*write_broken_image(tmp_path), "scaling.workers=1"]) == 2
    said = capsys.readouterr()
    assert "3.png" in said.err
    assert said.err.count("error:") == 1
    assert "Traceback" not in said.out + said.err
    assert "ray-train" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.exhaustive
def test_a_failed_run_ends_its_threads_before_its_ray(tmp_path: Path) -> None:
    """A thread that waits for Ray as it shuts down would end the process without the message."""
    (tmp_path / "sitecustomize.py").write_text(PRINTS_THREADS)
    process = start(
        tmp_path, *write_broken_image(tmp_path),
        RAYMI_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    output = finish(process, 2)
    assert "at the end of Ray: MainThread" in output
    assert "ray-train" not in output
    assert output.count("error:") == 1


def test_an_error_in_the_users_model_names_its_line(
    joined_ray: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "faulty_model.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, image_size):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3 * image_size**2, num_classes)\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 8:\n"
        "            raise IndexError('my own bug')\n"
        "        return self.fc(x.flatten(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("model.name=faulty_model:Net", "scaling.max_failures=0", "tracking.enabled=false")
    assert train.main([*TINY, *words, "scaling.workers=1"]) == 1
    said = capsys.readouterr()
    assert "IndexError: my own bug" in said.out
    assert 'faulty_model.py", line 8' in said.out
    assert "Traceback" not in said.out + said.err
