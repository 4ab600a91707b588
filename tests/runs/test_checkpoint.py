"""Checkpoints are whole or not there; a damaged one is passed over with a warning."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from raymi.errors import UserError
from raymi.files import write_atomically
from raymi.runs.checkpoint import load_checkpoint, replace_checkpoints, save_checkpoint


def content(step):
    return {"step": step, "weights": {"w": torch.full((50,), float(step))}, "names": ["a", None]}


def save(folder, *steps, keep=2):
    return [save_checkpoint(folder, step, content(step), keep) for step in steps]


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = [truncate, empty, flip_a_bit]


def test_the_newest_checkpoint_is_loaded_as_it_was(tmp_path):
    save(tmp_path, 9, 10, 100)
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.pop("weights")["w"], torch.full((50,), 100.0))
    assert loaded == {"step": 100, "names": ["a", None]}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, damage):
    damaged = save(tmp_path, 1, 2)[-1]
    damage(damaged)
    with pytest.warns(UserWarning, match=f"{damaged.name} is damaged .* using the one before it"):
        assert load_checkpoint(tmp_path)["step"] == 1


def test_a_run_does_not_silently_start_over_if_all_are_damaged(tmp_path):
    for path, damage in zip(save(tmp_path, 1, 2, 3, keep=3), DAMAGE, strict=True):
        damage(path)
    with pytest.warns(UserWarning, match="is damaged") as caught:
        with pytest.raises(UserError, match=r"all 3 checkpoints in .* are damaged .*restore one"):
            load_checkpoint(tmp_path)
    assert len(caught) == 2


def test_a_missing_or_empty_folder_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path) is None
    assert load_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    paths = save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert sorted(tmp_path.iterdir()) == paths[-keep:]


def test_after_a_damaged_one_the_remaining_ones_are_sound(tmp_path):
    """Otherwise a damaged later file would replace a sound one permanently."""
    damaged = save(tmp_path, 10, 20)[-1]
    flip_a_bit(damaged)
    save(tmp_path, 12)
    save(tmp_path, 14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(tmp_path)["step"] == 14
    assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == [
        "step-00000012",
        "step-00000014",
    ]


def test_saving_the_same_step_again_keeps_the_one_before(tmp_path):
    save(tmp_path, 1, 2, 2)
    assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == [
        "step-00000001",
        "step-00000002",
    ]


def test_a_crash_while_writing_leaves_only_the_older_ones(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    before = sorted(tmp_path.iterdir())

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == before
    assert load_checkpoint(tmp_path)["step"] == 2


def test_a_file_appears_under_its_name_only_once_it_is_complete_and_synced(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(path.exists()), real(fd)))
    write_atomically(path, b"all of it")
    assert path.read_bytes() == b"all of it"
    assert seen[0] is False
    assert seen[1:] == [True] * (os.name == "posix")
    assert list(tmp_path.iterdir()) == [path]


def test_half_written_and_foreign_files_are_no_checkpoints(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002-0123456789abcdef.pt.7.tmp").write_bytes(b"half")
    (tmp_path / "step-2.pt").write_bytes(b"mine")
    assert load_checkpoint(tmp_path)["step"] == 1


def test_the_next_checkpoint_removes_files_of_killed_writers(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002-0123456789abcdef.pt.7.tmp").write_bytes(b"half")
    (tmp_path / "step-2.pt").write_bytes(b"mine")
    save(tmp_path, 2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:13] for name in names] == ["step-00000001", "step-00000002", "step-2.pt"]


class Malicious:
    def __reduce__(self):
        return (os.system, ("echo this must not run",))


def test_loading_executes_no_code(tmp_path):
    save_checkpoint(tmp_path, 1, {"x": Malicious()}, 2)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_checkpoint(tmp_path)


class Killed(BaseException):
    """A process that ends without a word."""


@pytest.mark.parametrize("own", [(), (1, 2), (4, 5), (4, 6, 7), (6, 7)], ids=str)
def test_replacing_all_checkpoints_leaves_the_old_or_the_new_one(own, tmp_path, monkeypatch):
    path_unlink = Path.unlink
    for variant in range(4):  # of the same step, the new name comes before the old one or after it
        for calls in range(len(own) + 1):
            folder, left = tmp_path / f"{variant}-{calls}", iter(range(calls))
            folder.mkdir()
            old, new = save(folder, *own, keep=9), {"step": 5, "new": variant}

            def unlink(path, old=old, left=left, **options):
                if path in old and next(left, None) is None:
                    raise Killed
                path_unlink(path, **options)

            killed = calls < len(own)
            with monkeypatch.context() as patched:
                patched.setattr(Path, "unlink", unlink)
                with pytest.raises(Killed) if killed else nullcontext():
                    replace_checkpoints(folder, 5, new)
            found = load_checkpoint(folder)
            assert found == new or (killed and found["step"] == own[-1])
            replace_checkpoints(folder, 5, new)
            assert load_checkpoint(folder) == new
            assert len(list(folder.iterdir())) == 1
