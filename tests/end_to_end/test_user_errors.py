"""What the user can put right is one clear message, also where only the workers can find it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raymi_command import TINY, run

pytestmark = pytest.mark.slow


def _image_folder(root: Path) -> Path:
    """Two classes of 16 images for training and 4 for testing."""
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


TELLS_WHO_IS_LEFT = """
import threading
import ray
shut_down = ray.shutdown
def told(*args, **kwargs):
    print("at the end of Ray:", *(thread.name for thread in threading.enumerate()))
    shut_down(*args, **kwargs)
ray.shutdown = told
"""
"""For `sitecustomize`, which every Python imports as it starts."""


def test_corrupt_image_ends_the_run_with_its_name(tmp_path: Path) -> None:
    images = _image_folder(tmp_path / "images with a space")
    broken = images / "train" / "dark" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "sitecustomize.py").write_text(TELLS_WHO_IS_LEFT)
    done = run(
        tmp_path, *TINY, "data.name=folder", f"data.root={images}",
        "batch_size=8", "tracking.enabled=false",
        RAYMI_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert "at the end of Ray: MainThread" in done.stdout
    assert "ray-train" not in done.stdout, "it might have taken the process along"
    assert done.returncode == 2, done.stdout + done.stderr
    assert "3.png" in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_users_own_model_and_images_train(tmp_path: Path) -> None:
    images = _image_folder(tmp_path / "images")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))\n"
    )
    done = run(
        tmp_path, *TINY, "data.name=folder", f"data.root={images}",
        "batch_size=8", "model.name=mine:net", "tracking.enabled=false",
        RAYMI_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PGD-4" in done.stdout


def test_error_in_the_users_model_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, image_size):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3 * image_size**2, num_classes)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            raise IndexError('my own bug')\n"
        "        return self.fc(x.flatten(1))\n"
    )
    done = run(
        tmp_path, *TINY, "model.name=mine:Net", "scaling.max_failures=0", "tracking.enabled=false"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "IndexError: my own bug" in done.stdout
    assert 'mine.py", line 8' in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
