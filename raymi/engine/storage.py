"""Writes to a run's folder; a full disk or a missing folder ends all workers cleanly.

Rank 0 alone writes. If it cannot, all workers end at the same point with an error, so that none
waits for one that has ended.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

from raymi.engine.context import Context
from raymi.errors import StorageError, storage_remedy
from raymi.runs.checkpoint import newest_checkpoint
from raymi.runs.run_folder import RunFolder


class Storage:
    """Folder of a run to which all of its workers write together.

    Args:
        folder: of the run.
        context: of this worker.
    """

    def __init__(self, folder: RunFolder, context: Context) -> None:
        self.folder, self.context = folder, context

    def write(self, what: str, path: Path, action: Callable[[], object]) -> None:
        """Performs an action on rank 0; all workers call this at the same point.

        Args:
            what: name of the written file, for the error.
            path: where it is written.
            action: may raise OSError.

        Raises:
            StorageError: the action could not write; raised on every worker.
        """
        problem = None
        if self.context.group.rank == 0:
            try:
                action()
            except OSError as error:
                problem = StorageError(self._explain(what, path, error))
        if self.context.agree(problem is not None):
            raise problem or StorageError(f"rank 0 could not write {what}: see its error")

    def _explain(self, what: str, path: Path, error: OSError) -> str:
        text = f"cannot write {what} to {path} ({error.strerror or error})"
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            return (
                f"{text}: the run's folder is missing. Restore its storage, then "
                "continue the run from its last checkpoint"
            )
        remedy = storage_remedy(error).capitalize()
        return f"{text}. {self._remaining_checkpoints()}. {remedy}, then continue the run"

    def _remaining_checkpoints(self) -> str:
        try:
            newest = newest_checkpoint(self.folder.checkpoints)
        except OSError:
            return "Earlier checkpoints cannot be read at present"
        if newest is None:
            return "Without a checkpoint so far, the run will start over"
        (step,) = re.findall(r"step-(\d+)", newest.name)
        return (
            f"Earlier checkpoints are untouched, the newest intact one is of step {int(step)}: "
            "later work is lost, and will be repeated"
        )
