"""Elastic runs: what is done inside Ray Train's controller when workers are lost or can be more.

Ray ends the workers as they are before it starts others in another number, and says so beforehand
only there.
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

PAUSE_SECONDS = 120.0  # how long workers may take to come to the end of a step and save


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Asks workers that train to write a checkpoint and end, before their number changes.

    Workers that failed are not asked: their last checkpoint is what there is.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._training: WorkerGroup | None = None

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        self._training = worker_group

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        self._training = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        workers, self._training = self._training, None
        if workers is None:
            return
        try:
            self.folder.pause_file.touch()
            deadline = time.monotonic() + PAUSE_SECONDS
            while time.monotonic() < deadline:
                status = workers.poll_status(timeout=1.0)  # also lets a worker's report through
                if status.finished or status.errors:
                    break
                time.sleep(0.1)
        except Exception:  # raised here, it would end the run: the last checkpoint has to do
            logging.getLogger(__name__).exception("no checkpoint before the resize")
        finally:
            with suppress(OSError):
                self.folder.pause_file.unlink(missing_ok=True)


class FailuresWithoutProgress(ControllerCallback, WorkerGroupCallback):
    """Ends an elastic run that fails again and again at the same place, and no other.

    Ray counts each lost node as a failure of the workers, so that a long run on nodes that come and
    go would use up any number of them. What counts here is failures without a new checkpoint.

    Args: folder; most, how many such failures in a row are allowed.
    """

    def __init__(self, folder: RunFolder, most: int) -> None:
        self.folder, self.most = folder, most
        self._training = False
        self._newest: Path | None = None
        self._failures = 0

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        self._training = True

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        if not self._training:  # Ray found no place for the workers, and tries again
            return
        self._training = False
        with suppress(OSError):  # the storage is away: no progress, as far as we know
            newest = newest_checkpoint(self.folder.checkpoints)
            if newest != self._newest:
                self._newest, self._failures = newest, 0
        self._failures += 1
        if self._failures > self.most:
            raise RuntimeError(
                f"the workers failed {self._failures} times without a new checkpoint in between: "
                f"scaling.max_failures={self.most}"
            )
