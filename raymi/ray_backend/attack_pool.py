"""Workers of an evaluation: Ray actors that make its steps, whichever of them are there.

A step is handed to a worker that is ready and idle, and to no other: one that Ray cannot place, or
that is slow, holds nothing up. A step whose worker is lost is made again by the next one. What
comes of a step does not depend on who makes it.
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
from raymi.ray_backend.attack_worker import Answer, AttackWorker

POLL_SECONDS = 0.2
READY_SECONDS = 120.0
"""How long there may be no worker at all, beside scaling.wait_minutes."""


@dataclass(eq=False)
class _Item:
    """A step in the queue or at a worker, and how many workers were lost over it."""

    task: AttackTask
    losses: int = 0


@dataclass(eq=False)
class _Worker:
    """An actor, and what it is asked: to begin until it is `ready`, then to make `item`."""

    actor: Any
    answer: Any  # Ray's reference; None while it is idle
    item: _Item | None = None
    ready: bool = False


class AttackPool:
    """A pool of Ray actors; to be imported and used within a `ray_session`, closed before its end.

    Args:
        work: all that the steps need; sent once, not with each of them.
        scaling: number of workers, their CPUs, and how many may be lost over the same step.
        use_gpu: one GPU for each worker.
        import_path: folder of the user's own modules.
        tell: takes a line about what happens to workers, and raymi's warnings in them.
    """

    def __init__(
        self,
        work: WorkerJob,
        scaling: ScalingConfig,
        *,
        use_gpu: bool,
        import_path: str,
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._scaling, self._use_gpu, self._tell = scaling, use_gpu, tell
        self.workers = scaling.most_workers
        self._arguments = (import_path, scaling.cpus_per_worker, "cuda" if use_gpu else "cpu")
        self._work = ray.put(work)
        self._queue: deque[_Item] = deque()
        self._done: deque[AttackResult] = deque()
        self._told: set[str] = set()
        self._failed_starts = 0  # since a worker got ready
        self._last_ready = time.monotonic()
        self._actors: list[_Worker] = []
        for _ in range(scaling.most_workers):
            self._start_worker()

    def __enter__(self) -> AttackPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        while self._actors and not head_watch.is_lost():
            ray.kill(self._actors.pop().actor)

    def submit(self, task: AttackTask) -> None:
        self._queue.append(_Item(task))
        self._hand_out()

    def next(self) -> AttackResult:
        """Waits for one of the steps that were submitted to be done, in any order.

        Raises: UserError for what the user can put right; StepFailed where a step cannot be made.
        """
        while True:
            try:
                self._collect()
                self._hand_out()
                head_watch.check()
            except head_watch.RayLost as loss:
                raise StepFailed(str(loss)) from None
            if self._done:
                return self._done.popleft()
            self._check_that_some_are_ready()

    def _start_worker(self) -> None:
        actor = (
            ray.remote(AttackWorker)
            .options(num_cpus=self._scaling.cpus_per_worker, num_gpus=int(self._use_gpu))
            .remote(*self._arguments)
        )
        self._actors.append(_Worker(actor, actor.begin.remote(self._work)))

    def _hand_out(self) -> None:
        for worker in self._actors:
            if self._queue and worker.ready and worker.answer is None:
                worker.item = self._queue.popleft()
                worker.answer = worker.actor.make.remote(worker.item.task)

    def _collect(self) -> None:
        """Takes the answers that are there; without a step to return, waits a while for one."""
        asked = {worker.answer: worker for worker in self._actors if worker.answer is not None}
        if not asked:
            return
        answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        if not (answers or self._done):
            answers, _ = ray.wait(list(asked), num_returns=1, timeout=POLL_SECONDS)
        for answer in answers:
            self._take(asked[answer])

    def _take(self, worker: _Worker) -> None:
        reference, worker.answer = worker.answer, None
        try:
            answer: Answer = ray.get(reference)
        except RayTaskError as error:  # what it was sent, or sends back, cannot be unpickled
            what = "a worker cannot begin" if worker.item is None else str(worker.item.task)
            cause = getattr(error.cause, "client_exc", error.cause)  # without Ray's traceback
            raise StepFailed(f"{what}: {type(cause).__name__}: {cause}") from None
        except RayError as error:
            head_watch.check_after_an_error()
            self._lose(worker, error)
            return
        for message in answer.warned:
            if message not in self._told:
                self._told.add(message)
                self._tell(message)
        if answer.problem is not None:
            raise (UserError if answer.by_user else StepFailed)(answer.problem)
        worker.ready, worker.item = True, None
        if answer.done is None:
            self._failed_starts = 0
        else:
            self._done.append(answer.done)

    def _lose(self, worker: _Worker, error: RayError) -> None:
        """Starts another worker in place of one that is gone, and puts its step back."""
        ray.kill(worker.actor)  # it may only be out of reach
        self._actors.remove(worker)
        how, most = _how(error), self._scaling.max_failures
        if worker.item is None:
            self._lose_before_it_began(how)
            return
        item = worker.item
        item.losses += 1
        if item.losses > most:
            raise StepFailed(
                f"{item.task} was given up after {item.losses} lost workers, the last one as {how} "
                f"(scaling.max_failures={most}): if memory ran out, set a smaller evaluation.block "
                "or fewer workers on a node"
            )
        self._tell(f"a worker was lost, as {how}: {item.task} is made again")
        self._queue.appendleft(item)
        self._start_worker()

    def _lose_before_it_began(self, how: str) -> None:
        """Ends an evaluation in which no worker begins, but not one that others can finish."""
        self._failed_starts += 1
        if self._failed_starts <= self._scaling.max_failures * self._scaling.most_workers:
            self._tell(f"a worker was lost before it began, as {how}: another one is started")
            self._start_worker()
        elif any(other.ready for other in self._actors):
            self._tell(f"a worker was lost before it began, as {how}: it is done without")
        else:
            raise StepFailed(f"workers are lost before they begin, the last one as {how}")

    def _check_that_some_are_ready(self) -> None:
        now, patience = time.monotonic(), READY_SECONDS + 60 * self._scaling.wait_minutes
        if any(worker.ready for worker in self._actors):
            self._last_ready = now
        elif now - self._last_ready > patience:
            each = f"{self._scaling.cpus_per_worker} CPU" + " and 1 GPU" * self._use_gpu
            raise UserError(
                f"no worker was ready for {patience:.0f} s: the cluster has no free place with "
                f"{each}; end what takes it, add nodes, or set scaling.wait_minutes"
            )


def _how(error: RayError) -> str:
    """Why a worker was lost, in a few words; Ray's own are many, and made for its developers."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return "its node ran out of memory"
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return f"it could not be made ({text.strip().splitlines()[-1]})"
    if isinstance(error, ActorUnavailableError):  # what is seen first of most lost nodes
        return "the connection to it was lost"
    if "node has died" in text or "node died" in text:
        return "its node was lost"
    code = re.search(r"exit code (\d+)", text)
    return f"its process ended with exit code {code[1]}" if code else "its process was killed"
