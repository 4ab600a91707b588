"""The readers of torchvision on small files in the original formats."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

from raymi.data import check_data, load_splits, torchvision_sets
from raymi.errors import UserError

NAMES = ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"]
NUM_TRAIN, NUM_TEST = 40, 20


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, cls: type, label_key: str) -> None:
    """Writes pickled batches, and replaces the checksums that torchvision expects."""
    rng = np.random.default_rng(0)
    folder = root / cls.base_folder
    folder.mkdir(parents=True)

    def write(name: str, count: int, start: int = 0) -> list[str]:
        data = rng.integers(0, 256, (count, 3072), np.uint8)
        batch = {"data": data, label_key: [i % 10 for i in range(start, start + count)]}
        (folder / name).write_bytes(pickle.dumps(batch))
        return [name, md5(folder / name)]

    names = [name for name, _ in cls.train_list]
    size = NUM_TRAIN // len(names)
    batches = [write(name, size, start=i * size) for i, name in enumerate(names)]
    monkeypatch.setattr(cls, "train_list", batches)
    monkeypatch.setattr(cls, "test_list", [write(n, NUM_TEST) for n, _ in cls.test_list])
    meta = folder / cls.meta["filename"]
    meta.write_bytes(pickle.dumps({cls.meta["key"]: [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5(meta)})


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MATLAB files, in which the digit 0 is class 10."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    parts = {}
    for part, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        path = root / f"{part}_32x32.mat"
        labels = np.array([i % 10 or 10 for i in range(count)], np.uint8)[:, None]
        scipy.io.savemat(
            path, {"X": rng.integers(0, 256, (32, 32, 3, count), np.uint8), "y": labels}
        )
        parts[part] = [f"http://nowhere.invalid/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)


def write_mnist(root: Path, cls: type) -> None:
    """IDX files, unpacked: torchvision verifies only the archives that it downloads."""
    rng = np.random.default_rng(0)
    folder = root / cls.__name__ / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.array([i % 10 for i in range(count)], np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())


@pytest.fixture
def write(monkeypatch):
    """Writes the named data set, 40 + 20 images of 10 classes in turn, in its original format."""

    def write(name: str, root: Path) -> None:
        if name == "cifar10":
            write_cifar(root, monkeypatch, datasets.CIFAR10, "labels")
        elif name == "cifar100":
            write_cifar(root, monkeypatch, datasets.CIFAR100, "fine_labels")
        elif name == "svhn":
            write_svhn(root, monkeypatch)
        else:
            write_mnist(root, datasets.MNIST if name == "mnist" else datasets.FashionMNIST)

    return write


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_equals_its_torchvision_reader(name, tmp_path, write, no_network):
    write(name, tmp_path)
    check_data(name, tmp_path, download=False)
    splits = load_splits(name, tmp_path, val_fraction=0.25)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [30, 10, 20]
    size = 28 if "mnist" in name else 32
    assert splits.image_size == size
    for part in (splits.train, splits.val, splits.test):
        assert part.images.shape == (len(part), 3, size, size)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert len(part.class_names) == splits.num_classes == 10
    assert torch.bincount(splits.val.labels).tolist() == [1] * 10
    assert splits.test.labels.tolist() == [i % 10 for i in range(20)]

    reader = torchvision_sets.TORCHVISION_SETS[name].open(tmp_path, train=False)
    for i in (0, 13):
        picture = np.asarray(reader[i][0].convert("RGB"))
        assert torch.equal(splits.test.images[i].permute(1, 2, 0), torch.tensor(picture))


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_download_names_files_and_folder(name, tmp_path, no_network):
    check_data(name, tmp_path)  # could be downloaded
    with pytest.raises(UserError, match=r"could not be downloaded .*not known") as caught:
        load_splits(name, tmp_path)
    assert "\n" not in str(caught.value)
    dataset = torchvision_sets.TORCHVISION_SETS[name]
    assert str(tmp_path / dataset.folder) in str(caught.value)
    assert all(file in str(caught.value) for file in dataset.files)


@pytest.mark.parametrize("name", NAMES)
def test_download_false_uses_neither_network_nor_disk(name, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("RAYMI_DATA", str(tmp_path / "sets"))
    for function in (check_data, load_splits):
        with pytest.raises(UserError, match=r"sets and downloading is switched off.*http"):
            function(name, download=False)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_one_error(name, tmp_path, write, no_network):
    write(name, tmp_path)
    dataset = torchvision_sets.TORCHVISION_SETS[name]
    path = tmp_path / dataset.folder / dataset.files[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"damaged files.*delete.*{path.name}"):
        load_splits(name, tmp_path)


def test_a_stalled_download_fails_and_the_timeout_is_restored(tmp_path, monkeypatch):
    timeouts = []

    def stall(*args, **kwargs):
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", stall)
    with pytest.raises(UserError, match=r"could not be downloaded \(timed out\)"):
        load_splits("svhn", tmp_path)
    assert timeouts
    assert None not in timeouts
    assert socket.getdefaulttimeout() is None


def test_archives_copied_by_hand_are_unpacked(tmp_path, monkeypatch, no_network):
    write_mnist(tmp_path, datasets.MNIST)
    raw = tmp_path / "MNIST" / "raw"
    resources = []
    for path in sorted(raw.iterdir()):
        archive = path.with_name(f"{path.name}.gz")
        archive.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        resources.append((archive.name, md5(archive)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    assert len(load_splits("mnist", tmp_path).test) == NUM_TEST


def test_complete_files_in_a_read_only_folder_are_enough(tmp_path, write, monkeypatch, no_network):
    import filelock

    write("cifar10", tmp_path)

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", denied)
    assert len(load_splits("cifar10", tmp_path).test) == NUM_TEST


PROCESSES = """
import multiprocessing, sys, time
from pathlib import Path
from torchvision import datasets
from raymi.data import load_splits

root, files = map(Path, sys.argv[1:])

def download(self):
    if self._check_exists():
        return
    for path in sorted((files / "FashionMNIST" / "raw").iterdir()):
        with open(root / "downloads.txt", "a") as log:
            print(path.name, file=log)
        target = root / "FashionMNIST" / "raw" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()  # there, but not yet complete
        time.sleep(0.2)
        target.write_bytes(path.read_bytes())

def load():
    digest = load_splits("fashion-mnist", root).train.digest
    (root / f"{multiprocessing.current_process().name}.digest").write_text(digest)

datasets.FashionMNIST.download = download
context = multiprocessing.get_context("fork")
processes = [context.Process(target=load) for _ in range(3)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


def test_concurrent_processes_download_once(tmp_path):
    root, files = tmp_path / "root", tmp_path / "files"
    write_mnist(files, datasets.FashionMNIST)
    command = [sys.executable, "-c", PROCESSES, str(root), str(files)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
    digests = [path.read_text() for path in root.glob("*.digest")]
    assert len(digests) == 3
    assert len(set(digests)) == 1
    downloaded = (root / "downloads.txt").read_text().split()
    assert downloaded == sorted(torchvision_sets.TORCHVISION_SETS["fashion-mnist"].files)
