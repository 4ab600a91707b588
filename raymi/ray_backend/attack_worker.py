"""What runs in each worker of an evaluation: steps, one at a time."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import raymi
from raymi.errors import UserError, what_happened
from raymi.evaluation.attack_task import AttackResult, AttackTask, StepFailed, run_task
from raymi.evaluation.worker_job import Attackers, WorkerJob

_PACKAGE = Path(raymi.__file__).parent


@dataclass(frozen=True)
class Answer:
    """What a worker sends back: the step, or else `problem`, which the user can put right or not;
    and what raymi warned of meanwhile."""

    done: AttackResult | None = None
    problem: str | None = None
    by_user: bool = False
    warned: tuple[str, ...] = ()


class AttackWorker:
    """A Ray actor. It raises nothing: the user's own errors may not survive being pickled, and
    Ray's traceback around them helps nobody.

    Args: import_path, the driver's current folder; threads, CPUs of its own; device.
    """

    def __init__(self, import_path: str, threads: int, device: str) -> None:
        if import_path not in sys.path:
            sys.path.insert(0, import_path)  # the user's own models
        torch.set_num_threads(threads)
        self._device = device
        self._warned: list[str] = []
        warnings.showwarning = self._keep_warning

    def begin(self, work: WorkerJob) -> Answer:
        """Takes what it needs for all steps. Not in the constructor: to unpickle it may take the
        user's own modules, which are found only now."""
        return self._answer(lambda: self._begin(work))

    def make(self, task: AttackTask) -> Answer:
        """Makes a step."""
        return self._answer(lambda: run_task(task, self._attackers))

    def _begin(self, work: WorkerJob) -> None:
        self._attackers = Attackers(work, self._device)

    def _answer(self, body: Callable[[], AttackResult | None]) -> Answer:
        self._warned.clear()
        try:
            done = body()
        except UserError as error:
            return Answer(problem=str(error), by_user=True, warned=tuple(self._warned))
        except StepFailed as error:
            return Answer(problem=str(error), warned=tuple(self._warned))
        except Exception as error:
            problem = f"a worker cannot begin: {what_happened(error)}"
            return Answer(problem=problem, warned=tuple(self._warned))
        return Answer(done, warned=tuple(self._warned))

    def _keep_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: Any = None,
    ) -> None:
        if Path(filename).is_relative_to(_PACKAGE):
            self._warned.append(str(message))
