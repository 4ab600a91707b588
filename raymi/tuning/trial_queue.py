"""Trial queue: the next jobs of a sweep, and the consequences of their results.

The queue is a function of the sweep's folder and study, so that a resumed sweep continues as it
would have without the interruption.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from raymi.errors import UserError
from raymi.runs.checkpoint import load_checkpoint
from raymi.tuning.events import EventKind
from raymi.tuning.pbt import Plan, first_generation, next_generation
from raymi.tuning.pbt_checkpoints import transfer_checkpoint
from raymi.tuning.results_table import trial_rows
from raymi.tuning.run_trial import TrialResult
from raymi.tuning.space import Values
from raymi.tuning.study import Study
from raymi.tuning.sweep_folder import Measurement, Sweep, TrialRun


class Job(NamedTuple):
    """Training of a run to its end, or to `until_epoch`."""

    run: TrialRun
    values: Values
    until_epoch: int | None = None


class TrialQueue(Protocol):
    """Queue of a sweep's jobs."""

    @property
    def max_jobs(self) -> int:
        """Upper bound on the number of further jobs."""

    @property
    def exhausted(self) -> bool:
        """True once no result of a running job can lead to a further one."""

    def next(self) -> Job | None:
        """Returns the next job; None: none at present."""

    def report(self, run: TrialRun, measurement: Measurement) -> bool:
        """Records the measurements of a running job; returns whether it should stop."""

    def complete(self, run: TrialRun, result: TrialResult) -> EventKind:
        """Records the result of a job, "finished" or "failed"; returns the event of the run."""


def trial_queue_of(sweep: Sweep, study: Study) -> TrialQueue:
    """Builds the queue of the jobs that a sweep has left.

    Raises:
        StorageError: A checkpoint cannot be transferred.
    """
    pbt = sweep.definition.tune.search == "pbt"
    return _Generations(sweep, study) if pbt else _Trials(sweep, study)


class _Trials:
    """Independent trials: first the unfinished ones of an earlier process, then new draws."""

    def __init__(self, sweep: Sweep, study: Study) -> None:
        self._sweep, self._study = sweep, study
        self._next = deque(self._unfinished())

    @property
    def max_jobs(self) -> int:
        not_drawn = self._sweep.num_trials - len(self._study)
        return len(self._next) + not_drawn * len(self._sweep.seeds)

    @property
    def exhausted(self) -> bool:
        return not self._next and len(self._study) >= self._sweep.num_trials

    def _unfinished(self) -> Iterator[TrialRun]:
        for trial in self._study.unfinished():
            runs = self._sweep.runs_of(trial.number)
            yield from (run for run in runs if not self._sweep.is_finished(run))
            self._conclude(trial.number)

    def next(self) -> Job | None:
        while not self.exhausted:
            if not self._next:
                self._next.extend(self._sweep.runs_of(self._study.ask().number))
            run = self._next.popleft()
            trial = self._study[run.number]
            if trial.state == "running":  # no other seed has failed
                return Job(run, trial.values)
        return None

    def report(self, run: TrialRun, measurement: Measurement) -> bool:
        trial = self._study[run.number]
        if trial.state != "running":  # another seed has failed
            return True
        if len(self._sweep.seeds) > 1:
            return False
        epoch = measurement.epoch
        behind = self._study.report(run.number, epoch, measurement.robust)
        if not behind or epoch == self._sweep.config_of(trial.values).optim.epochs:
            return False
        self._study.stop(run.number)
        return True

    def complete(self, run: TrialRun, result: TrialResult) -> EventKind:
        if result.status == "finished" and not self._sweep.measurements(run):
            result = TrialResult("failed", "it was never validated")
        if result.status == "failed":
            seed = f"seed {run.seed}: " if len(self._sweep.seeds) > 1 else ""
            self._study.fail(run.number, f"{seed}{result.reason}")
            return "failed"
        self._conclude(run.number)
        return "finished"

    def _conclude(self, number: int) -> None:
        """Finishes a trial once all its runs have finished."""
        if all(map(self._sweep.is_finished, self._sweep.runs_of(number))):
            (row,) = trial_rows(self._sweep, [self._study[number]])
            names = self._sweep.definition.tune.objectives
            self._study.finish(number, [getattr(row, name) for name in names])


class _Generations:
    """PBT: each member trains for a generation, then the worst continue from the best."""

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
        self._running: set[int] = set()
        if any(trial.state == "running" for trial in study):
            self._advance()

    @property
    def max_jobs(self) -> int:
        generations = math.ceil(self._epochs / self._interval) - self._generation
        return len(self._next) + len(self._plans) * generations

    @property
    def exhausted(self) -> bool:
        return not (self._next or self._running)

    @property
    def _until(self) -> int:
        """Last epoch of the generation."""
        return min(self._generation * self._interval, self._epochs)

    def _run(self, member: int) -> TrialRun:
        return TrialRun(member, self._sweep.seeds[0])

    def _advance(self) -> None:
        """Advances through all generations with results; transfers checkpoints as planned."""
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
                    source, target = (
                        self._sweep.folder_of(self._run(member))
                        for member in (plan.parent, plan.member)
                    )
                    transfer_checkpoint(source, target, self._until)
            self._generation += 1
            results = {plan.member: self._result(plan.member) for plan in self._plans}
            known = [result for result in results.values() if result is not None]
        self._next.extend(plan for plan in self._plans if results[plan.member] is None)

    def _result(self, member: int) -> float | None:
        """Returns the robust accuracy in the generation's last epoch.

        Returns:
            NaN if the member failed in the generation, None before its result.
        """
        if self._study.get_note(member, self._failure) is not None:
            return math.nan
        run = self._run(member)
        val = self._sweep.validation_by_epoch(run).get(self._until)
        return val.robust if val is not None and self._is_saved(run) else None

    def _is_saved(self, run: TrialRun) -> bool:
        """Returns whether the generation's end is on disk; the validation precedes it."""
        if self._until == self._epochs:
            return self._sweep.is_finished(run)
        with suppress(UserError):  # every checkpoint is damaged: the run starts again
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
                reason = self._study.get_note(number, self._failure)
                self._study.fail(number, f"{self._failure}: {reason}")
            else:
                (row,) = trial_rows(self._sweep, [self._study[number]])
                self._study.finish(number, [row.robust])

    def next(self) -> Job | None:
        if not self._next:
            return None
        plan = self._next.popleft()
        self._running.add(plan.member)
        until = None if self._until == self._epochs else self._until
        return Job(self._run(plan.member), plan.values, until)

    def report(self, run: TrialRun, measurement: Measurement) -> bool:
        return False

    def complete(self, run: TrialRun, result: TrialResult) -> EventKind:
        if result.status == "failed":
            self._study.note(run.number, self._failure, result.reason or "")
        elif self._result(run.number) is None:
            self._study.note(run.number, self._failure, "it was not validated")
        last = self._until == self._epochs
        self._running.discard(run.number)
        if self.exhausted:
            self._advance()
        if result.status == "failed":
            return "failed"
        return "finished" if last else "advanced"
