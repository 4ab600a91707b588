"""Makes the steps of an evaluation that the ledger does not have yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from raymi.evaluation.attack_task import AttackResult, AttackTask, make
from raymi.evaluation.blocks import BlockAttacker, Outcome, Schedule, Step
from raymi.evaluation.outcome_store import OutcomeStore


class Pool(Protocol):
    """Where steps are made: in this process, or on workers of a cluster."""

    workers: int
    """How many steps are made at the same time."""

    def submit(self, task: AttackTask) -> None:
        """Takes a step to make; returns at once."""

    def next(self) -> AttackResult:
        """Waits for one of the steps that were submitted to be done, in any order.

        Raises: UserError or StepFailed where it cannot be made.
        """


class LocalPool:
    """A pool without workers: a step is made when its outcome is asked for.

    Args: attacker_of, what attacks the classifier of a name.
    """

    workers = 1

    def __init__(self, attacker_of: Callable[[str], BlockAttacker]) -> None:
        self._attacker_of = attacker_of
        self._waiting: deque[AttackTask] = deque()

    def submit(self, task: AttackTask) -> None:
        self._waiting.append(task)

    def next(self) -> AttackResult:
        return make(self._waiting.popleft(), self._attacker_of)


_AHEAD = 4  # steps for each worker that a pool has: more would hold surrogates' samples in memory

Lookup = Callable[[Step, Tensor], Tensor | None]
"""The x_adv (M, 3, H, W) that were made before for the samples (M,) of a step, or None."""


def run(
    schedule: Schedule,
    store: OutcomeStore,
    pool: Pool,
    source: str = "",
    *,
    made_before: Lookup = lambda step, samples: None,
    keep: Callable[[Step], bool] = lambda step: False,
) -> Iterator[tuple[Step, Outcome, bool]]:
    """Brings the evaluation of a classifier to its end; each outcome is in the ledger before it is
    yielded.

    Args: made_before, finds samples that need not be made; keep, whether the adversarial samples of
        a step are kept in the ledger, too.
    Yields: step, its outcome, and whether it was in the ledger already.
    """
    going_on = 0
    waiting: deque[tuple[Step, Tensor]] = deque()
    known: deque[tuple[Step, Outcome]] = deque()

    def begin(tasks: Iterable[tuple[Step, Tensor]]) -> None:
        for step, samples in tasks:
            outcome = store.outcome(step)
            # Other samples are left where a damaged block before this one was attacked again.
            there = outcome is not None and torch.equal(outcome.samples, samples)
            if there and keep(step):
                there = store.adversarial(step) is not None
            if there and outcome is not None:
                known.append((step, outcome))
            else:
                waiting.append((step, samples))

    begin(schedule.first())
    while known or waiting or going_on:
        if known:
            step, outcome = known.popleft()
            begin(schedule.after(step, outcome))
            yield step, outcome, True
            continue
        while waiting and going_on < _AHEAD * pool.workers:
            step, samples = waiting.popleft()
            pool.submit(AttackTask(source, step, samples, made_before(step, samples), keep(step)))
            going_on += 1
        step, outcome, x_adv = pool.next()
        going_on -= 1
        if x_adv is not None:
            store.save(step, outcome, x_adv)
        store.record(step, outcome)
        begin(schedule.after(step, outcome))
        yield step, outcome, False
