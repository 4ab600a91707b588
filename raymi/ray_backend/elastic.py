"""Callbacks of elastic runs inside Ray Train's controller: save before a resize, limit failures.

Ray ends all workers before it starts another number of them, and announces that only in its
controller.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymi.ray_backend.internals import (
    ControllerCallback,
    WorkerGroup,
    WorkerGroupCallback,
)
from raymi.runs.checkpoint import newest_checkpoint
from raymi.runs.run_folder import RunFolder

PAUSE_SECONDS = 120.0  # for workers to finish a step and save


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Callback that lets training workers write a checkpoint before their number changes.

    Failed workers are not asked: the run continues from their last checkpoint.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._training: WorkerGroup | None = None

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        """Remembers the workers."""
        self._training = worker_group

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Forgets the workers, which failed."""
        self._training = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Asks the workers for a checkpoint and waits for it."""
        workers, self._training = self._training, None
        if workers is None:
            return
        try:
            self.folder.pause_file.touch()
            deadline = time.monotonic() + PAUSE_SECONDS
            while time.monotonic() < deadline:
                status = workers.poll_status(timeout=1.0)  # also passes a worker's report on
                if status.finished or status.errors:
                    break
                time.sleep(0.1)
        except Exception:  # would end the run; the last checkpoint is used instead
            logging.getLogger(__name__).exception("no checkpoint before the resize")
        finally:
            with suppress(OSError):
                self.folder.pause_file.unlink(missing_ok=True)


class FailuresWithoutProgress(ControllerCallback, WorkerGroupCallback):
    """Callback that ends an elastic run after repeated failures without a new checkpoint.

    Ray counts every lost node as a failure, which would end any long run on spot instances.

    Args:
        folder: Folder of the run.
        max_failures: Number of consecutive failures without a new checkpoint that are allowed.
    """

    def __init__(self, folder: RunFolder, max_failures: int) -> None:
        self.folder, self.max_failures = folder, max_failures
        self._training = False
        self._newest: Path | None = None
        self._failures = 0

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        """Notes that training has begun."""
        self._training = True

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Counts a failure; raises after too many without a checkpoint."""
        if not self._training:  # Ray found no slots for the workers, and retries
            return
        self._training = False
        with suppress(OSError):  # unreachable storage counts as no progress
            newest = newest_checkpoint(self.folder.checkpoints)
            if newest != self._newest:
                self._newest, self._failures = newest, 0
        self._failures += 1
        if self._failures > self.max_failures:
            raise RuntimeError(
                f"the workers failed {self._failures} times without a new checkpoint: "
                f"scaling.max_failures={self.max_failures}"
            )
