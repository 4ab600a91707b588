"""A change of the number of workers that loses nothing: they write a checkpoint before it.

Ray Train ends the workers as they are when it resizes an elastic run, and starts others. It says so
beforehand only inside its controller, which is where this runs.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from raymi.engine.run_folder import RunFolder

PAUSE_SECONDS = 120.0  # how long workers may take to come to the end of a step and save


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Asks workers that train to write a checkpoint and end, before their number changes.

    Workers that failed are not asked: their last checkpoint is what there is.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._training: Any = None  # Ray's worker group

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._training = worker_group

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        self._training = None

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        workers, self._training = self._training, None
        if workers is None:
            return
        with suppress(OSError):  # the storage is away: then nothing can be saved
            self.folder.pause_file.touch()
            deadline = time.monotonic() + PAUSE_SECONDS
            while time.monotonic() < deadline:
                status = workers.poll_status(timeout=1.0)  # also lets a worker's report through
                if status.finished or status.errors:
                    break
                time.sleep(0.1)
            self.folder.pause_file.unlink(missing_ok=True)
