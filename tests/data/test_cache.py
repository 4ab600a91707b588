from __future__ import annotations

from pathlib import Path

import numpy as np

from raymi.data.cache import cache_folder, cached_array, data_folder


class Counted:
    """Returns a fixed array and counts how often it was asked to."""

    calls = 0

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_an_array_is_computed_once():
    compute = Counted()
    first, second = cached_array("key", compute), cached_array("key", compute)
    assert compute.calls == 1
    np.testing.assert_array_equal(first, second)
    cached_array("other", compute)
    assert compute.calls == 2


def test_writes_into_a_cached_array_are_private():
    cached_array("key", Counted())
    cached_array("key", Counted())[:] = 0
    np.testing.assert_array_equal(cached_array("key", Counted()), Counted()())


def test_a_damaged_entry_is_recomputed(own_cache):
    cached_array("key", Counted())
    (entry,) = own_cache.rglob("*.npy")
    for damage in (b"", entry.read_bytes()[:-1], b"nonsense"):
        entry.write_bytes(damage)
        compute = Counted()
        np.testing.assert_array_equal(cached_array("key", compute), Counted()())
        assert compute.calls == 1
    assert not list(own_cache.rglob("*.tmp"))


def test_an_unwritable_cache_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYMI_CACHE", str(tmp_path / "file" / "below"))
    compute = Counted()
    cached_array("key", compute)
    np.testing.assert_array_equal(cached_array("key", compute), Counted()())
    assert compute.calls == 2


def test_a_full_disk_leaves_no_partial_file(own_cache, monkeypatch):
    def full(file, array, **_):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full)
    np.testing.assert_array_equal(cached_array("key", Counted()), Counted()())
    assert [p.suffix for p in own_cache.rglob("*") if p.is_file()] in ([], [".lock"])


def test_environment_variables_set_the_folders(monkeypatch):
    monkeypatch.setenv("RAYMI_CACHE", "/some/cache")
    assert data_folder() == Path("/some/cache/data")
    monkeypatch.setenv("RAYMI_DATA", "~/sets")
    assert data_folder() == Path.home() / "sets"
    monkeypatch.delenv("RAYMI_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "raymi"
