"""Checkpoints, written atomically with their sha256 in the name.

A file is named `step-00001234-<first 16 digits of its sha256>.pt`; `torch.load` alone loads it. A
file whose content does not match its name (truncated, a flipped bit) is skipped with a warning in
favour of the one before it.
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

FORMAT = 2
"""Number of the content's format, in each checkpoint; other formats are refused."""

_NAME = re.compile(r"step-\d{8}-[0-9a-f]{16}\.pt")


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint durably, then removes all but the newest `keep` up to this step.

    Others of this step or later are removed too: training resumed from an earlier step, so they
    were skipped as damaged.

    Args:
        folder: created if missing; its parent must exist.
        step: optimiser steps done.
        content: tensors and plain values.
        keep: number of checkpoints to keep, at least 2.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: the disk is full or the folder gone; older checkpoints are untouched.
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
    """Writes a checkpoint durably in place of all others, of any step.

    Before it returns, the newest checkpoint is either the previous one or this one.

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
    """Loads the newest intact checkpoint on the CPU; None if the folder has no checkpoint.

    Warns about each damaged one that it skips. Executes no pickle code (`weights_only=True`).

    Raises:
        UserError: all checkpoints are damaged (starting over is the user's decision), or the
            newest one has another format.
    """
    paths = _checkpoints(folder)
    for path in reversed(paths):
        data = path.read_bytes()
        if is_whole(path, data):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            check_format(content)
            del content["format"]
            return content
        if path != paths[0]:
            warnings.warn(
                f"checkpoint {path} is damaged (its sha256 does not match its name): "
                "using the one before it",
                stacklevel=2,
            )
    if paths:
        raise UserError(
            f"all {len(paths)} checkpoints in {folder} are damaged (their sha256 do not match "
            "their names): restore one, or remove the folder to start the run over"
        )
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the path of the newest intact checkpoint; None without one."""
    checkpoints = reversed(_checkpoints(folder))
    return next((path for path in checkpoints if is_whole(path, path.read_bytes())), None)


def check_format(content: dict[str, Any]) -> None:
    """Refuses a checkpoint of another version of raymi.

    Raises:
        UserError: its format is another one.
    """
    if content.get("format") != FORMAT:
        raise UserError(
            f"expected a checkpoint of format {FORMAT}, got {content.get('format')}: "
            "continue it with the version of raymi that wrote it"
        )


def check_whole(path: Path, data: bytes) -> None:
    """Compares the content of a checkpoint with the checksum in its name.

    Args:
        path: of any file; one that is not named as a checkpoint passes.
        data: content of the file.

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
    torch.save({"format": FORMAT, **content}, buffer)
    data = buffer.getbuffer()
    path = folder / f"step-{step:08d}-{checksum(data)}.pt"
    write_atomically(path, data)
    return path


def _remove_half_written(folder: Path) -> None:
    """Removes temporary files of processes that were killed while they wrote."""
    for half_written in folder.glob(".step-*.tmp"):
        half_written.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the paths of the checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def _step(path: Path) -> int:
    return int(path.name[5:13])
