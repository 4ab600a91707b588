"""Real data where it lies next to the project, and a cache of each test's own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$RAYMI_CACHE, empty; nothing of the user's is read or written."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYMI_CACHE", str(folder))
    monkeypatch.delenv("RAYMI_DATA", raising=False)
    return folder


@pytest.fixture(scope="session")
def cifar10_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published cifar-10-batches-py/."""
    unpack = SHARED / "unpack_cifar10.py"
    if not unpack.is_file():
        pytest.skip("real CIFAR-10 is not next to this checkout")
    root = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(unpack), str(root)], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def tiny_imagenet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny-imagenet-200/: its first 10 classes, 100 + 50 real images of each."""
    archive = SHARED / "tiny-imagenet-10.zip"
    if not archive.is_file():
        pytest.skip("real Tiny-ImageNet images are not next to this checkout")
    root = tmp_path_factory.mktemp("tiny-imagenet")
    with zipfile.ZipFile(archive) as file:
        file.extractall(root)
    return root


@pytest.fixture
def write_images() -> Callable[..., None]:
    """Writes `count` random PNG images of `size` (width, height) for each class into a folder."""

    def write(
        folder: Path, classes: str, count: int, size: tuple[int, int] = (8, 8), seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        for name in classes.split():
            (folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{i}.png")

    return write
