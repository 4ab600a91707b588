"""What a sweep does next: which run trains, with what, how far; and what follows from how it ended.

All of it follows from the sweep's folder and study, so that whoever continues a sweep goes on as it
would have.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from raymi.errors import UserError
from raymi.runs.checkpoint import load_checkpoint
from raymi.tuning.events import Kind
from raymi.tuning.pbt import Plan, first_generation, next_generation
from raymi.tuning.pbt_checkpoints import transfer_checkpoint
from raymi.tuning.results_table import trial_rows
from raymi.tuning.run_trial import Ended
from raymi.tuning.space import Values
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun


class Job(NamedTuple):
    """What a process is asked to do: to bring a run to its end; or, with `until_epoch`, so far."""

    run: TrialRun
    values: Values
    until_epoch: int | None = None


class TrialQueue(Protocol):
    """What a sweep does next."""

    @property
    def most(self) -> int:
        """How many jobs there may be yet."""

    @property
    def over(self) -> bool:
        """Whether there will be no further job, whatever those come to that go on."""

    def next(self) -> Job | None:
        """The next job; None: there is none now."""

    def measured(self, run: TrialRun, now: Measurement) -> bool:
        """Notes what a run has reached by now; whether it should be stopped."""

    def ended(self, run: TrialRun, ended: Ended) -> Kind:
        """Notes how a job has ended, "finished" or "failed"; what that is for the run."""


def trial_queue_of(sweep: Sweep, study: Study) -> TrialQueue:
    """That of a sweep, from where it is.

    Raises: StorageError where a checkpoint cannot be handed on.
    """
    population = sweep.definition.tune.search == "pbt"
    return _Generations(sweep, study) if population else _Trials(sweep, study)


class _Trials:
    """Trials that do not know of each other: those first that an earlier process left, then what
    the study draws."""

    def __init__(self, sweep: Sweep, study: Study) -> None:
        self._sweep, self._study = sweep, study
        self._next = deque(self._left())

    @property
    def most(self) -> int:
        fresh = self._sweep.num_trials - len(self._study)
        return len(self._next) + fresh * len(self._sweep.seeds)

    @property
    def over(self) -> bool:
        return not self._next and len(self._study) >= self._sweep.num_trials

    def _left(self) -> Iterator[TrialRun]:
        for trial in self._study.unfinished():
            runs = self._sweep.runs_of(trial.number)
            yield from (run for run in runs if not self._sweep.is_finished(run))
            self._conclude(trial.number)

    def next(self) -> Job | None:
        while not self.over:
            if not self._next:
                self._next.extend(self._sweep.runs_of(self._study.ask().number))
            run = self._next.popleft()
            trial = self._study[run.number]
            if trial.state == "running":  # no other seed of it has failed
                return Job(run, trial.values)
        return None

    def measured(self, run: TrialRun, now: Measurement) -> bool:
        trial = self._study[run.number]
        if trial.state != "running":  # another seed of it has failed
            return True
        if len(self._sweep.seeds) > 1:
            return False
        behind = self._study.report(run.number, now.epoch, now.robust)
        if not behind or now.epoch == self._sweep.config_of(trial.values).optim.epochs:
            return False
        self._study.stop(run.number)
        return True

    def ended(self, run: TrialRun, ended: Ended) -> Kind:
        if ended.how == "finished" and not self._sweep.measured(run):
            ended = Ended("failed", "it was never validated")
        if ended.how == "failed":
            seed = f"seed {run.seed}: " if len(self._sweep.seeds) > 1 else ""
            self._study.fail(run.number, f"{seed}{ended.reason}")
            return "failed"
        self._conclude(run.number)
        return "finished"

    def _conclude(self, number: int) -> None:
        """Ends a trial once all of its runs have ended."""
        if all(map(self._sweep.is_finished, self._sweep.runs_of(number))):
            (row,) = trial_rows(self._sweep, [self._study[number]])
            names = self._sweep.definition.tune.objectives
            self._study.finish(number, [getattr(row, name) for name in names])


class _Generations:
    """Members of a population, each of which trains so many epochs in a generation; between two of
    them the worst take over from the best."""

    def __init__(self, sweep: Sweep, study: Study) -> None:
        self._sweep, self._study = sweep, study
        tune = sweep.definition.tune
        self._interval = tune.interval
        self._epochs = sweep.config_of({}).optim.epochs
        while len(study) < tune.trials:
            study.ask()
        self._generation = 1
        self._plans = first_generation(sweep.definition.space, sweep.seeds[0], tune.trials)
        self._next: deque[Plan] = deque()
        self._waiting: set[int] = set()
        if any(trial.state == "running" for trial in study):
            self._go_on()

    @property
    def most(self) -> int:
        left = math.ceil(self._epochs / self._interval) - self._generation
        return len(self._next) + len(self._plans) * left

    @property
    def over(self) -> bool:
        return not (self._next or self._waiting)

    @property
    def _until(self) -> int:
        """The epoch with which the generation ends."""
        return min(self._generation * self._interval, self._epochs)

    def _run(self, member: int) -> TrialRun:
        return TrialRun(member, self._sweep.seeds[0])

    def _go_on(self) -> None:
        """Plans as far as there are results, and hands checkpoints on as planned."""
        results = {plan.member: self._result(plan.member) for plan in self._plans}
        known = [result for result in results.values() if result is not None]
        while len(known) == len(results):
            if self._until == self._epochs or all(map(math.isnan, known)):
                self._conclude(known)
                return
            self._plans = next_generation(
                self._sweep.definition.space,
                self._sweep.seeds[0],
                self._generation,
                self._plans,
                known,
            )
            for plan in self._plans:
                self._study.revise(plan.member, plan.values)
                if plan.parent is not None:
                    leader, follower = (
                        self._sweep.folder_of(self._run(member))
                        for member in (plan.parent, plan.member)
                    )
                    transfer_checkpoint(leader, follower, self._until)
            self._generation += 1
            results = {plan.member: self._result(plan.member) for plan in self._plans}
            known = [result for result in results.values() if result is not None]
        self._next.extend(plan for plan in self._plans if results[plan.member] is None)

    def _result(self, member: int) -> float | None:
        """Robust accuracy in the last epoch of the generation; NaN where the member failed in it;
        None where it is not there yet."""
        if self._study.noted(member, self._failure) is not None:
            return math.nan
        run = self._run(member)
        val = self._sweep.validated(run).get(self._until)
        return val.robust if val is not None and self._is_safe(run) else None

    def _is_safe(self, run: TrialRun) -> bool:
        """Whether what a run came to by the end of the generation outlives its process: it is
        validated before it is."""
        if self._until == self._epochs:
            return self._sweep.is_finished(run)
        with suppress(UserError):  # all damaged: it begins anew
            checkpoint = load_checkpoint(self._sweep.folder_of(run).checkpoints)
            return checkpoint is not None and checkpoint["position"]["epoch"] >= self._until
        return False

    @property
    def _failure(self) -> str:
        return f"failed in generation {self._generation}"

    def _conclude(self, results: list[float]) -> None:
        for plan, result in zip(self._plans, results, strict=True):
            number = plan.member
            if math.isnan(result):
                reason = self._study.noted(number, self._failure)
                self._study.fail(number, f"{self._failure}: {reason}")
            else:
                (row,) = trial_rows(self._sweep, [self._study[number]])
                self._study.finish(number, [row.robust])

    def next(self) -> Job | None:
        if not self._next:
            return None
        plan = self._next.popleft()
        self._waiting.add(plan.member)
        until = None if self._until == self._epochs else self._until
        return Job(self._run(plan.member), plan.values, until)

    def measured(self, run: TrialRun, now: Measurement) -> bool:
        return False

    def ended(self, run: TrialRun, ended: Ended) -> Kind:
        if ended.how == "failed":
            self._study.note(run.number, self._failure, ended.reason or "")
        elif self._result(run.number) is None:
            self._study.note(run.number, self._failure, "it was not validated")
        last = self._until == self._epochs
        self._waiting.discard(run.number)
        if self.over:
            self._go_on()
        if ended.how == "failed":
            return "failed"
        return "finished" if last else "advanced"
