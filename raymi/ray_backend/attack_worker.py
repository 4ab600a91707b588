"""Ray actor that runs attack tasks, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from raymi.errors import UserError, what_happened
from raymi.evaluation.attack_task import AttackResult, AttackTask, StepFailed, run_task
from raymi.evaluation.worker_job import Attackers, WorkerJob
from raymi.ray_backend.worker_process import add_import_path, forward_warnings


@dataclass(frozen=True)
class Reply:
    """Reply of a worker.

    Attributes:
        result: Result of a task; None for the set-up, and after a failure.
        problem: Message of a failure.
        is_user_error: Whether the user can fix the failure.
        warnings: Warnings of raymi during the call.
    """

    result: AttackResult | None = None
    problem: str | None = None
    is_user_error: bool = False
    warnings: tuple[str, ...] = ()


class AttackWorker:
    """Ray actor that returns errors in its replies: a user's exception may not be picklable.

    Args:
        import_path: Folder of the user's own modules.
        threads: Number of CPU threads.
        device: "cpu" or "cuda".
    """

    def __init__(self, import_path: str, threads: int, device: str) -> None:
        add_import_path(import_path)
        torch.set_num_threads(threads)
        self._device = device
        self._warnings: list[str] = []
        forward_warnings(self._warnings.append)

    def set_up(self, job: WorkerJob) -> Reply:
        """Builds the attackers of all tasks.

        Not in the constructor: unpickling the job may import the user's modules, which need the
        import path.
        """
        return self._reply(lambda: self._set_up(job))

    def run(self, task: AttackTask) -> Reply:
        """Runs a task."""
        return self._reply(lambda: run_task(task, self._attackers))

    def _set_up(self, job: WorkerJob) -> None:
        self._attackers = Attackers(job, self._device)

    def _reply(self, body: Callable[[], AttackResult | None]) -> Reply:
        self._warnings.clear()
        try:
            result = body()
        except UserError as error:
            return Reply(problem=str(error), is_user_error=True, warnings=tuple(self._warnings))
        except StepFailed as error:
            return Reply(problem=str(error), warnings=tuple(self._warnings))
        except Exception as error:
            problem = f"a worker cannot start: {what_happened(error)}"
            return Reply(problem=problem, warnings=tuple(self._warnings))
        return Reply(result, warnings=tuple(self._warnings))
