"""Pool of Ray actors that run the attack tasks of an evaluation.

Only ready, idle workers get a task, so that a worker that Ray cannot place, or a slow one, delays
no other task. A lost worker's task is retried. The result does not depend on the worker.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.evaluation.attack_task import AttackResult, AttackTask, StepFailed
from raymi.evaluation.worker_job import WorkerJob
from raymi.ray_backend import head_watch
from raymi.ray_backend.attack_worker import AttackWorker, Reply

POLL_SECONDS = 0.2
READY_SECONDS = 120.0
"""Seconds without any ready worker before the pool fails, in addition to scaling.wait_minutes."""


@dataclass(eq=False)
class _Item:
    """Task in the queue or at a worker, with the number of workers lost on it."""

    task: AttackTask
    losses: int = 0


@dataclass(eq=False)
class _Worker:
    """Actor with its pending call: the set-up until it is `ready`, then `item`."""

    actor: Any
    reference: Any  # Ray's reference to the pending call; None while idle
    item: _Item | None = None
    ready: bool = False


class AttackPool:
    """Pool of Ray actors, for use within a `ray_session`.

    Args:
        job: Models and images of all tasks, sent once to each worker.
        scaling: Number of workers, their CPUs, and the number of workers that a task may lose.
        use_gpu: Whether each worker has a GPU.
        import_path: Folder of the user's own modules.
        on_message: Receives messages about workers, and raymi's warnings in them.
    """

    def __init__(
        self,
        job: WorkerJob,
        scaling: ScalingConfig,
        *,
        use_gpu: bool,
        import_path: str,
        on_message: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._scaling, self._use_gpu, self._on_message = scaling, use_gpu, on_message
        self.workers = scaling.most_workers
        self._arguments = (import_path, scaling.cpus_per_worker, "cuda" if use_gpu else "cpu")
        self._job = ray.put(job)
        self._queue: deque[_Item] = deque()
        self._results: deque[AttackResult] = deque()
        self._warnings: set[str] = set()
        self._failed_starts = 0  # since the last successful one
        self._last_ready = time.monotonic()
        self._workers: list[_Worker] = []
        for _ in range(scaling.most_workers):
            self._start_worker()

    def __enter__(self) -> AttackPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills all workers."""
        while self._workers and not head_watch.head_lost():
            ray.kill(self._workers.pop().actor)

    def submit(self, task: AttackTask) -> None:
        """Queues a task, and starts it if a worker is free."""
        self._queue.append(_Item(task))
        self._assign()

    def next(self) -> AttackResult:
        """Waits for the result of any submitted task.

        Raises:
            UserError: The user can fix the failure.
            StepFailed: Any other failure of a task.
        """
        while True:
            try:
                self._collect()
                self._assign()
                head_watch.check()
            except head_watch.RayLost as loss:
                raise StepFailed(str(loss)) from None
            if self._results:
                return self._results.popleft()
            self._check_ready()

    def _start_worker(self) -> None:
        actor = (
            ray.remote(AttackWorker)
            .options(num_cpus=self._scaling.cpus_per_worker, num_gpus=int(self._use_gpu))
            .remote(*self._arguments)
        )
        self._workers.append(_Worker(actor, actor.set_up.remote(self._job)))

    def _assign(self) -> None:
        """Assigns queued tasks to idle workers."""
        for worker in self._workers:
            if self._queue and worker.ready and worker.reference is None:
                worker.item = self._queue.popleft()
                worker.reference = worker.actor.run.remote(worker.item.task)

    def _collect(self) -> None:
        """Collects available replies; without a result to return, waits `POLL_SECONDS` for one."""
        pending = {one.reference: one for one in self._workers if one.reference is not None}
        if not pending:
            return
        ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        if not (ready or self._results):
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_SECONDS)
        for reference in ready:
            self._take_reply(pending[reference])

    def _take_reply(self, worker: _Worker) -> None:
        reference, worker.reference = worker.reference, None
        try:
            reply: Reply = ray.get(reference)
        except RayTaskError as error:  # the job, a task or its result cannot be unpickled
            what = "a worker cannot start" if worker.item is None else str(worker.item.task)
            cause = getattr(error.cause, "client_exc", error.cause)  # without Ray's traceback
            raise StepFailed(f"{what}: {type(cause).__name__}: {cause}") from None
        except RayError as error:
            head_watch.check_after_error()
            self._replace(worker, error)
            return
        for message in reply.warnings:
            if message not in self._warnings:
                self._warnings.add(message)
                self._on_message(message)
        if reply.problem is not None:
            raise (UserError if reply.is_user_error else StepFailed)(reply.problem)
        worker.ready, worker.item = True, None
        if reply.result is None:
            self._failed_starts = 0
        else:
            self._results.append(reply.result)

    def _replace(self, worker: _Worker, error: RayError) -> None:
        """Replaces a lost worker and queues its task again."""
        ray.kill(worker.actor)  # it may only be unreachable
        self._workers.remove(worker)
        cause, limit = _loss_cause(error), self._scaling.max_failures
        if worker.item is None:
            self._replace_unready(cause)
            return
        item = worker.item
        item.losses += 1
        if item.losses > limit:
            raise StepFailed(
                f"{item.task} failed after {item.losses} lost workers, the last one: {cause} "
                f"(scaling.max_failures={limit}): if memory ran out, set a smaller "
                "evaluation.block or fewer workers on a node"
            )
        self._on_message(f"worker lost ({cause}): retrying {item.task}")
        self._queue.appendleft(item)
        self._start_worker()

    def _replace_unready(self, cause: str) -> None:
        """Replaces a worker that was lost during its start; fails if no worker starts."""
        self._failed_starts += 1
        if self._failed_starts <= self._scaling.max_failures * self._scaling.most_workers:
            self._on_message(f"worker lost during its start ({cause}): starting another one")
            self._start_worker()
        elif any(other.ready for other in self._workers):
            self._on_message(f"worker lost during its start ({cause}): continuing without it")
        else:
            raise StepFailed(f"no worker starts, the last one: {cause}")

    def _check_ready(self) -> None:
        """Checks that some worker was ready recently."""
        now, limit = time.monotonic(), READY_SECONDS + 60 * self._scaling.wait_minutes
        if any(worker.ready for worker in self._workers):
            self._last_ready = now
        elif now - self._last_ready > limit:
            resources = f"{self._scaling.cpus_per_worker} CPU" + " and 1 GPU" * self._use_gpu
            raise UserError(
                f"no worker was ready for {limit:.0f} s: the cluster has no free slot with "
                f"{resources}; end other jobs, add nodes, or set scaling.wait_minutes"
            )


def _loss_cause(error: RayError) -> str:
    """Returns the cause of a lost worker in a few words."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return "node out of memory"
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return f"actor not created: {text.strip().splitlines()[-1]}"
    if isinstance(error, ActorUnavailableError):  # the first error of most lost nodes
        return "connection lost"
    if "node has died" in text or "node died" in text:
        return "node lost"
    code = re.search(r"exit code (\d+)", text)
    return f"process ended with exit code {code[1]}" if code else "process killed"
