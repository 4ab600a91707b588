"""The state of a search: what was drawn, reported and found, in one file that survives whatever
happens.

What a trial draws is a function of the search's seed, the trial's number and of what is known by
then: no random state is lost with a process, so that a search which was cut off goes on as it would
have.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from raymi.counter_rng import random_key
from raymi.errors import StorageError, UserError, first_line
from raymi.tuning.pbt import first_generation
from raymi.tuning.space import Space, Values

Method = Literal["tpe", "random", "grid", "pbt"]
State = Literal["running", "finished", "stopped", "failed"]

_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
_NAME = "sweep"
_REVISED = "values"  # key of what a trial goes on with, other than it has drawn
_DAMAGED = (
    SQLAlchemyError, optuna.exceptions.OptunaError, ValueError, KeyError, TypeError,
    AttributeError, IndexError,
)  # fmt: skip
"""Errors of SQLite, SQLAlchemy and Optuna for a file with other content than they wrote."""
_STARTUP = 10  # trials that TPE draws evenly, before it knows enough


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving: of the trials that have come to `first` epochs, then to
    `factor` times as many and so on, the best one in `factor` goes on.

    Source: Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020.
    """

    first: int = 1
    factor: int = 3


@dataclass(frozen=True)
class Trial:
    """A trial: its number, from 0; what it drew; its state; the objectives in the end, those that
    it reported by epoch; why it failed."""

    number: int
    values: Values
    state: State
    objectives: tuple[float, ...] | None
    reported: dict[int, float]
    reason: str | None


class Study:
    """A search in a file.

    Args:
        path: of the SQLite file, made if it is not there.
        space: that is searched.
        method: "tpe" (tree-structured Parzen estimators, Bergstra et al. 2011), "random", or
            "grid": every combination of a few values, once; or "pbt": the members of a population.
        objectives: names of what is maximised: one, or several for a Pareto front.
        halving: stops trials that are behind; None: none are stopped. For one objective only.
        seed: of all draws.
        size: of the population.
    Raises: UserError where several objectives are to be halved, or the file is that of another
        search, or damaged.
    """

    def __init__(
        self,
        path: Path,
        space: Space,
        *,
        method: Method = "tpe",
        objectives: Sequence[str] = ("robust",),
        halving: Halving | None = None,
        seed: int = 0,
        size: int = 0,
    ) -> None:
        if halving is not None and len(objectives) > 1:
            raise UserError(
                f"trials can be stopped by one objective only, got {', '.join(objectives)}: search "
                "one of them, or let all trials run to their end"
            )
        self.space, self.method, self.seed = space, method, seed
        self._listed = _listed(space, method, seed, size)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._path, self._objectives = path, tuple(objectives)
        protocol = {
            "space": json.loads(space.model_dump_json()),
            "method": method,
            "objectives": list(objectives),
            "halving": None if halving is None else [halving.first, halving.factor],
            "seed": seed,
        }
        try:
            with _quietly():
                self._study = optuna.create_study(
                    storage=URL.create("sqlite", database=str(path)).render_as_string(),
                    study_name=_NAME,
                    load_if_exists=True,
                    directions=["maximize"] * len(objectives),
                    pruner=_pruner(halving),
                )
                asked = self._study.user_attrs.get("question")
                if asked is None:
                    self._study.set_user_attr("question", protocol)
        except (*_DAMAGED, RuntimeError) as error:
            raise UserError(
                f"{path} cannot be opened ({first_line(error)}): its folder must be "
                "there, and it must be the file of a search"
            ) from None
        if asked is not None and asked != protocol:
            before = asked if isinstance(asked, dict) else {}
            keys = ", ".join(key for key in protocol if before.get(key) != protocol[key])
            raise UserError(
                f"{path} is the state of another search ({keys}): trials of two are never mixed"
            )

    @property
    def most(self) -> int | None:
        """How many trials there can be; None: any number."""
        return None if self._listed is None else len(self._listed)

    def ask(self) -> Trial:
        """Begins a trial.

        Raises: IndexError where a grid or a population has no more.
        """
        number = len(self._frozen_trials())
        with self._writing():
            if self._listed is not None:
                if not self._frozen_trials(TrialState.WAITING):
                    self._study.enqueue_trial(self._listed[number])
                else:  # an earlier process ended between the two lines
                    number -= 1
            self._study.sampler = self._sampler(number)
            trial = self._study.ask()
            self.space.draw(trial)
        return self[trial.number]

    def unfinished(self) -> list[Trial]:
        """Trials that had begun when an earlier process ended; each with all that it draws."""
        found = self._frozen_trials(TrialState.RUNNING)
        for frozen in found:
            with _quietly():
                self._study.sampler = self._sampler(frozen.number)
                self.space.draw(self._live(frozen))
        return [self[frozen.number] for frozen in found]

    def report(self, number: int, epoch: int, value: float) -> bool:
        """What a running trial has reached after an epoch, counted from 1.

        Returns: whether it should be stopped, which it never is with several objectives. An epoch
            that was reported before keeps its value.
        """
        if len(self._objectives) > 1:
            return False
        frozen = self._frozen(number)
        trial = self._live(frozen)
        with self._writing():
            if epoch not in frozen.intermediate_values:
                trial.report(value, epoch)
            return trial.should_prune()

    def finish(self, number: int, objectives: Sequence[float]) -> None:
        """A trial has come to its end; it failed where an objective is not a number.

        Raises: ValueError where there are not as many objectives as the search has.
        """
        if len(objectives) != len(self._objectives):
            raise ValueError(f"expected {self._objectives}, got {objectives}")
        if all(map(math.isfinite, objectives)):
            with self._writing():
                self._study.tell(number, list(objectives), skip_if_finished=True)
        else:
            self.fail(number, f"it came to {', '.join(map(str, objectives))}")

    def stop(self, number: int) -> None:
        """A trial was stopped as others are ahead of it."""
        with self._writing():
            self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, number: int, reason: str) -> None:
        """A trial failed: the search goes on without it."""
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        with self._writing():
            self._live(frozen).set_user_attr("reason", reason)
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def revise(self, number: int, values: Values) -> None:
        """A trial goes on with other values than it has drawn."""
        with self._writing():
            self._live(self._frozen(number)).set_user_attr(_REVISED, dict(values))

    def note(self, number: int, key: str, text: str) -> None:
        """Keeps something about a running trial."""
        with self._writing():
            self._live(self._frozen(number)).set_user_attr(key, text)

    def noted(self, number: int, key: str) -> str | None:
        """What was kept; None: nothing."""
        return self._frozen(number).user_attrs.get(key)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises: StorageError where the file cannot be written."""
        try:
            with _quietly():
                yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = first_line(error.__cause__ or error)
            raise StorageError(
                f"cannot write {self._path} ({cause}): see to its disk, then give the same command "
                "again"
            ) from None

    def _frozen_trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Reads the trials in some states, or all.

        Raises: UserError where the file is damaged.
        """
        try:
            found = self._study.get_trials(deepcopy=False, states=states or None)
            for frozen in found:
                _check_values(_trial(frozen).values, self.space)
        except _DAMAGED as error:
            raise self._damaged(error) from None
        return found

    def _damaged(self, error: Exception) -> UserError:
        cause = first_line(error.__cause__ or error)
        return UserError(
            f"{self._path} is damaged ({type(error).__name__}: {cause}): bring it back as it was, "
            "or begin a new sweep"
        )

    def _frozen(self, number: int) -> FrozenTrial:
        return self._frozen_trials()[number]

    def __len__(self) -> int:
        return len(self._frozen_trials())

    def __getitem__(self, number: int) -> Trial:
        return _trial(self._frozen(number))

    def __iter__(self) -> Iterator[Trial]:
        return iter([_trial(frozen) for frozen in self._frozen_trials()])

    def front(self) -> list[Trial]:
        """The finished trials that no other one beats in all objectives: of one objective, the best
        ones. Empty before any has finished."""
        if not any(trial.state == "finished" for trial in self):
            return []
        try:
            return [_trial(frozen) for frozen in self._study.best_trials]
        except _DAMAGED as error:
            raise self._damaged(error) from None

    def importance(self) -> dict[str, float]:
        """How much of the differences between trials each parameter accounts for that all of them
        have, as fractions by fANOVA, of the last objective; empty where too few have finished, or
        their values changed on the way.

        Source: Hutter, Hoos, Leyton-Brown, "An efficient approach for assessing hyperparameter
        importance", ICML 2014.
        """
        finished = [trial for trial in self if trial.state == "finished"]
        shared = set.intersection(*(set(trial.values) for trial in finished)) if finished else set()
        if len(finished) < 4 or not shared or self.method == "pbt":
            return {}
        last = len(finished[0].objectives or ()) - 1
        with _quietly():
            try:
                return optuna.importance.get_param_importances(
                    self._study,
                    evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self.seed),
                    target=lambda frozen: frozen.values[last],
                )
            except (RuntimeError, ValueError):  # all trials came to the same
                return {}

    def _live(self, frozen: FrozenTrial) -> optuna.Trial:
        return optuna.Trial(self._study, frozen._trial_id)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = random_key(self.seed, "trial", number) % 2**31
        if self.method != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=True
        )


def _listed(space: Space, method: Method, seed: int, size: int) -> list[Values] | None:
    """The values of all trials, where they are known beforehand."""
    if method == "grid":
        return list(space.grid())
    if method == "pbt":
        return [plan.values for plan in first_generation(space, seed, size)]
    return None


def _pruner(halving: Halving | None) -> optuna.pruners.BasePruner:
    if halving is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=halving.first, reduction_factor=halving.factor
    )


def _trial(frozen: FrozenTrial) -> Trial:
    state = _STATES[frozen.state]
    return Trial(
        number=frozen.number,
        values=dict(frozen.user_attrs.get(_REVISED, frozen.params)),
        state=state,
        objectives=tuple(frozen.values) if state == "finished" else None,
        reported=dict(frozen.intermediate_values),
        reason=frozen.user_attrs.get("reason"),
    )


def _check_values(values: Values, space: Space) -> None:
    """Raises: ValueError, KeyError where a space could not have drawn some values."""
    for name, value in values.items():
        choices = space.parameters[name].choice
        if choices is None and not isinstance(value, (int, float)):
            raise ValueError(f"{name}: expected a number, got {value!r}")
        if choices is not None and value not in choices:
            raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")


@contextmanager
def _quietly() -> Iterator[Any]:
    """Optuna warns of its own parts that they are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
