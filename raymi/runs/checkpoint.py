"""Checkpoints that are whole or not there: temporary file, fsync, atomic rename, sha256 in the
name.

A file is called `step-00001234-<first 16 digits of its sha256>.pt`; it loads with `torch.load`
alone. One whose content does not match its name (cut short, a flipped bit) is passed over with a
warning, and the one before it is used.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from raymi.errors import UserError
from raymi.files import checksum, is_whole, sync_folder, write_atomically

_NAME = re.compile(r"step-\d{8}-[0-9a-f]{16}\.pt")


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint durably, then removes all but the newest `keep` up to this step.

    Others of this step or later go too: of this step this one is newer, and training came from
    before later ones, so they were passed over as damaged.

    Args: folder, made if missing, in one that is there; step, optimiser steps done; content,
        tensors and plain values; keep, at least 2.
    Returns: its path.
    Raises: OSError where the disk is full or the folder gone; older checkpoints are untouched then.
    """
    path = _write(folder, step, content)
    others = [other for other in _checkpoints(folder) if other != path]
    earlier = [other for other in others if _step(other) < step]
    for other in others:
        if other not in earlier[-(keep - 1) :]:
            other.unlink(missing_ok=True)
    _remove_half_written(folder)
    return path


def replace_checkpoints(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Writes a checkpoint durably in the place of all others, whatever their steps.

    At any moment before it returns the newest one is either this one or the one that was.

    Args, Returns, Raises: as for `save_checkpoint`.
    """
    path = _write(folder, step, content)
    for other in _checkpoints(folder):  # the newest last
        if other != path:
            other.unlink()
    _remove_half_written(folder)
    sync_folder(folder)
    return path


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The content of the newest intact checkpoint, on the CPU; None where there are none at all.

    Warns about each damaged one that it passes over. Executes no pickle code (`weights_only=True`).

    Raises: UserError where there are some, all damaged: to begin anew is the user's decision.
    """
    paths = _checkpoints(folder)
    for path in reversed(paths):
        data = path.read_bytes()
        if is_whole(path, data):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if path != paths[0]:
            warnings.warn(
                f"checkpoint {path} is damaged (its sha256 does not match its name): "
                "the one before it is used",
                stacklevel=2,
            )
    if paths:
        raise UserError(
            f"all {len(paths)} checkpoints in {folder} are damaged (their sha256 do not match "
            "their names): restore one, or remove the folder to begin the run anew"
        )
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint; None where there is none."""
    checkpoints = reversed(_checkpoints(folder))
    return next((path for path in checkpoints if is_whole(path, path.read_bytes())), None)


def check_whole(path: Path, data: bytes) -> None:
    """Compares a file's content with the checksum in its name, where it is named as a checkpoint.

    Raises:
        UserError: they do not match.
    """
    if _NAME.fullmatch(path.name) and not is_whole(path, data):
        raise UserError(
            f"the checkpoint {path} is damaged: its sha256 does not match its name. Use another "
            "checkpoint of the run, or copy it again from an intact original"
        )


def _write(folder: Path, step: int, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getbuffer()
    path = folder / f"step-{step:08d}-{checksum(data)}.pt"
    write_atomically(path, data)
    return path


def _remove_half_written(folder: Path) -> None:
    """What processes have left that were killed while they wrote."""
    for half_written in folder.glob(".step-*.tmp"):
        half_written.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _step(path: Path) -> int:
    return int(path.name[5:13])
