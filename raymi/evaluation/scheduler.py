"""Scheduler: runs the steps of an evaluation that are not in the outcome store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from raymi.evaluation.attack_task import AttackResult, AttackTask, run_task
from raymi.evaluation.blocks import BlockAttacker, Outcome, Schedule, Step
from raymi.evaluation.outcome_store import OutcomeStore


class Pool(Protocol):
    """Runs attack tasks, in this process or on workers of a cluster."""

    workers: int
    """Number of tasks that run at the same time."""

    def submit(self, task: AttackTask) -> None:
        """Queues a task; does not wait."""

    def next(self) -> AttackResult:
        """Waits for the next result of a submitted task, in any order.

        Raises:
            UserError: the task failed and the user can fix it.
            StepFailed: the task failed.
        """


class LocalPool:
    """Pool without workers: runs each task when its result is requested.

    Args:
        attacker_of: returns the attacker of a classifier by name.
    """

    workers = 1

    def __init__(self, attacker_of: Callable[[str], BlockAttacker]) -> None:
        self._attacker_of = attacker_of
        self._queue: deque[AttackTask] = deque()

    def submit(self, task: AttackTask) -> None:
        """Queues a task."""
        self._queue.append(task)

    def next(self) -> AttackResult:
        """Runs the oldest task and returns its result."""
        return run_task(self._queue.popleft(), self._attacker_of)


_AHEAD = 4  # submitted tasks by worker; more would hold surrogates' samples in memory

Lookup = Callable[[Step, Tensor], Tensor | None]
"""Returns x_adv (M, 3, H, W) of a step's samples (M,) that a surrogate made, or None."""


def run_schedule(
    schedule: Schedule,
    store: OutcomeStore,
    pool: Pool,
    source: str = "",
    *,
    lookup: Lookup = lambda step, samples: None,
    keep: Callable[[Step], bool] = lambda step: False,
) -> Iterator[tuple[Step, Outcome, bool]]:
    """Runs all steps of a classifier; saves each outcome before it is yielded.

    Args:
        schedule: steps.
        store: where outcomes are saved.
        pool: where tasks run.
        source: name of the classifier.
        lookup: finds samples of surrogates.
        keep: whether the adversarial samples of a step are saved, too.

    Yields:
        The step, its outcome, and whether it was in the store already.
    """
    running = 0
    waiting: deque[tuple[Step, Tensor]] = deque()
    cached: deque[tuple[Step, Outcome]] = deque()

    def add(steps: Iterable[tuple[Step, Tensor]]) -> None:
        for step, samples in steps:
            outcome = store.load_outcome(step)
            # Samples differ if a damaged block was attacked again with other results.
            if (
                outcome is not None
                and torch.equal(outcome.samples, samples)
                and (not keep(step) or store.load_x_adv(step) is not None)
            ):
                cached.append((step, outcome))
            else:
                waiting.append((step, samples))

    add(schedule.first())
    while cached or waiting or running:
        if cached:
            step, outcome = cached.popleft()
            add(schedule.after(step, outcome))
            yield step, outcome, True
            continue
        while waiting and running < _AHEAD * pool.workers:
            step, samples = waiting.popleft()
            pool.submit(AttackTask(source, step, samples, lookup(step, samples), keep(step)))
            running += 1
        step, outcome, x_adv = pool.next()
        running -= 1
        if x_adv is not None:
            store.save_x_adv(step, outcome, x_adv)
        store.save_outcome(step, outcome)
        add(schedule.after(step, outcome))
        yield step, outcome, False
