"""Writing that can fail: a full disk, or a folder that is gone, ends a run cleanly.

Rank 0 alone writes. Where it cannot, every worker hears of it and ends at the same point with the
same error, so that nobody waits for somebody who has left.
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
    """The folder of a run, as all of its workers write to it.

    Args: folder; context, of this worker.
    """

    def __init__(self, folder: RunFolder, context: Context) -> None:
        self.folder, self.context = folder, context

    def write(self, what: str, path: Path, action: Callable[[], object]) -> None:
        """Performs an action on rank 0; all workers call this at the same point.

        Args: what is written, in words, and where; action, which may raise OSError.
        Raises: StorageError, on every worker, where the action could not write.
        """
        problem = None
        if self.context.group.rank == 0:
            try:
                action()
            except OSError as error:
                problem = StorageError(self._explain(what, path, error))
        if self.context.agree(problem is not None):
            raise problem or StorageError(f"rank 0 could not write {what}: it says why")

    def _explain(self, what: str, path: Path, error: OSError) -> str:
        text = f"cannot write {what} to {path} ({error.strerror or error})"
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            return (
                f"{text}: the run's folder is not there any more. Bring its storage back, then "
                "continue the run from its last checkpoint"
            )
        remedy = storage_remedy(error).capitalize()
        return f"{text}. {self._what_is_left()}. {remedy}, then continue the run"

    def _what_is_left(self) -> str:
        try:
            newest = newest_checkpoint(self.folder.checkpoints)
        except OSError:
            return "Earlier checkpoints cannot be read at present"
        if newest is None:
            return "There is no checkpoint yet: the run will begin anew"
        (step,) = re.findall(r"step-(\d+)", newest.name)
        return (
            f"Earlier checkpoints are untouched, the newest intact one is of step {int(step)}: "
            "the work since then is lost, and will be done again"
        )
