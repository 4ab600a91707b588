"""Study: the state of a search in one crash-safe SQLite file.

A trial's draw is a function of the seed, the trial's number and the results so far. No random state
is lost with a process: an interrupted search continues as it would have.
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
_REVISED = "values"  # key of values that replace the drawn ones
_DAMAGED = (
    SQLAlchemyError, optuna.exceptions.OptunaError, ValueError, KeyError, TypeError,
    AttributeError, IndexError,
)  # fmt: skip
"""Errors of SQLite, SQLAlchemy and Optuna for a file with unexpected content."""
_STARTUP = 10  # trials that TPE draws uniformly before it fits a model


@dataclass(frozen=True)
class Halving:
    """Asynchronous successive halving.

    Of the trials that reach `first`, `first * factor`, `first * factor**2`... epochs, the best
    1 / `factor` continue.

    Source: Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020.
    """

    first: int = 1
    factor: int = 3


@dataclass(frozen=True)
class Trial:
    """Trial of a study.

    Attributes:
        number: Number of the trial, from 0.
        values: Values that it drew, or that PBT gave it since.
        state: Its state.
        objectives: Final objectives of a finished trial.
        reported: Reported values by epoch.
        reason: Reason of a failure.
    """

    number: int
    values: Values
    state: State
    objectives: tuple[float, ...] | None
    reported: dict[int, float]
    reason: str | None


class Study:
    """Search in a file.

    Args:
        path: SQLite file, created if missing.
        space: The search space.
        method: "tpe" (tree-structured Parzen estimators, Bergstra et al. 2011), "random", "grid"
            (every combination of a few values once) or "pbt" (the members of a population).
        objectives: Names of the maximised objectives: one, or several for a Pareto front.
        halving: Stops trials that are behind, for one objective only; None: stops none.
        seed: Seed of all draws.
        size: Size of the population.

    Raises:
        UserError: Halving has several objectives, or the file is damaged or of another search.
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
                f"halving needs one objective, got {', '.join(objectives)}: choose one of them, or "
                "disable halving"
            )
        self.space, self.method, self.seed = space, method, seed
        self._planned = _planned_values(space, method, seed, size)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._path, self._objectives = path, tuple(objectives)
        definition = {
            "space": json.loads(space.model_dump_json()),
            "method": method,
            "objectives": list(objectives),
            "halving": None if halving is None else [halving.first, halving.factor],
            "seed": seed,
        }
        try:
            with _without_warnings():
                self._study = optuna.create_study(
                    storage=URL.create("sqlite", database=str(path)).render_as_string(),
                    study_name=_NAME,
                    load_if_exists=True,
                    directions=["maximize"] * len(objectives),
                    pruner=_pruner(halving),
                )
                saved = self._study.user_attrs.get("question")
                if saved is None:
                    self._study.set_user_attr("question", definition)
        except (*_DAMAGED, RuntimeError) as error:
            raise UserError(
                f"{path} cannot be opened ({first_line(error)}): its folder must exist, and it "
                "must be the file of a search"
            ) from None
        if saved is not None and saved != definition:
            before = saved if isinstance(saved, dict) else {}
            keys = ", ".join(key for key in definition if before.get(key) != definition[key])
            raise UserError(
                f"{path} is the state of another search ({keys}): trials of two searches cannot be "
                "mixed"
            )

    @property
    def max_trials(self) -> int | None:
        """Maximum number of trials; None: no limit."""
        return None if self._planned is None else len(self._planned)

    def ask(self) -> Trial:
        """Starts a trial.

        Raises:
            IndexError: The grid or the population has no further trial.
        """
        number = len(self._frozen_trials())
        with self._writing():
            if self._planned is not None:
                if not self._frozen_trials(TrialState.WAITING):
                    self._study.enqueue_trial(self._planned[number])
                else:  # a process was killed after it had enqueued the trial
                    number -= 1
            self._study.sampler = self._sampler(number)
            trial = self._study.ask()
            self.space.draw(trial)
        return self[trial.number]

    def unfinished(self) -> list[Trial]:
        """Returns the trials that a killed process left running, each with all its values."""
        running = self._frozen_trials(TrialState.RUNNING)
        for frozen in running:
            with _without_warnings():
                self._study.sampler = self._sampler(frozen.number)
                self.space.draw(self._open(frozen))
        return [self[frozen.number] for frozen in running]

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Reports the value of a running trial after an epoch.

        Args:
            number: Number of the trial.
            epoch: The epoch, counted from 1; one that was reported before keeps its value.
            value: Value of the objective.

        Returns:
            Whether the trial should stop; always False with several objectives.
        """
        if len(self._objectives) > 1:
            return False
        frozen = self._frozen(number)
        trial = self._open(frozen)
        with self._writing():
            if epoch not in frozen.intermediate_values:
                trial.report(value, epoch)
            return trial.should_prune()

    def finish(self, number: int, objectives: Sequence[float]) -> None:
        """Marks a trial as finished; as failed if an objective is not finite.

        Raises:
            ValueError: The search has another number of objectives.
        """
        if len(objectives) != len(self._objectives):
            raise ValueError(f"expected {self._objectives}, got {objectives}")
        if all(map(math.isfinite, objectives)):
            with self._writing():
                self._study.tell(number, list(objectives), skip_if_finished=True)
        else:
            self.fail(number, f"objective is {', '.join(map(str, objectives))}")

    def stop(self, number: int) -> None:
        """Marks a trial as stopped: others are ahead of it."""
        with self._writing():
            self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, number: int, reason: str) -> None:
        """Marks a trial as failed; the search continues without it."""
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        with self._writing():
            self._open(frozen).set_user_attr("reason", reason)
            self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def revise(self, number: int, values: Values) -> None:
        """Replaces the values of a running trial."""
        with self._writing():
            self._open(self._frozen(number)).set_user_attr(_REVISED, dict(values))

    def note(self, number: int, key: str, text: str) -> None:
        """Saves a note on a running trial."""
        with self._writing():
            self._open(self._frozen(number)).set_user_attr(key, text)

    def get_note(self, number: int, key: str) -> str | None:
        """Returns a saved note, or None."""
        return self._frozen(number).user_attrs.get(key)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Translates errors of a write.

        Raises:
            StorageError: The file cannot be written.
        """
        try:
            with _without_warnings():
                yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = first_line(error.__cause__ or error)
            raise StorageError(
                f"cannot write {self._path} ({cause}): check its disk, then run the same command "
                "again"
            ) from None

    def _frozen_trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Reads the trials in some states, or all.

        Raises:
            UserError: The file is damaged.
        """
        try:
            trials = self._study.get_trials(deepcopy=False, states=states or None)
            for frozen in trials:
                _check_values(_trial(frozen).values, self.space)
        except _DAMAGED as error:
            raise self._damaged(error) from None
        return trials

    def _damaged(self, error: Exception) -> UserError:
        cause = first_line(error.__cause__ or error)
        return UserError(
            f"{self._path} is damaged ({type(error).__name__}: {cause}): restore it, or start a "
            "new sweep"
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
        """Returns the Pareto front of the finished trials; the best ones for one objective."""
        if not any(trial.state == "finished" for trial in self):
            return []
        try:
            return [_trial(frozen) for frozen in self._study.best_trials]
        except _DAMAGED as error:
            raise self._damaged(error) from None

    def importance(self) -> dict[str, float]:
        """Computes the importance of the parameters that all finished trials have.

        Returns:
            Fractions of the variance of the last objective by fANOVA; empty if too few trials have
            finished, or with PBT, which changes their values.

        Source: Hutter, Hoos, Leyton-Brown, "An efficient approach for assessing hyperparameter
        importance", ICML 2014.
        """
        finished = [trial for trial in self if trial.state == "finished"]
        shared = set.intersection(*(set(trial.values) for trial in finished)) if finished else set()
        if len(finished) < 4 or not shared or self.method == "pbt":
            return {}
        last = len(finished[0].objectives or ()) - 1
        with _without_warnings():
            try:
                return optuna.importance.get_param_importances(
                    self._study,
                    evaluator=optuna.importance.FanovaImportanceEvaluator(seed=self.seed),
                    target=lambda frozen: frozen.values[last],
                )
            except (RuntimeError, ValueError):  # all trials have equal objectives
                return {}

    def _open(self, frozen: FrozenTrial) -> optuna.Trial:
        return optuna.Trial(self._study, frozen._trial_id)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = random_key(self.seed, "trial", number) % 2**31
        if self.method != "tpe":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=True
        )


def _planned_values(space: Space, method: Method, seed: int, size: int) -> list[Values] | None:
    """Returns the values of all trials of a grid or a population; None: drawn one by one."""
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
    """Checks that a space can have drawn some values.

    Raises:
        ValueError: A value is outside of its parameter.
        KeyError: A parameter is unknown.
    """
    for name, value in values.items():
        choices = space.parameters[name].choice
        if choices is None and not isinstance(value, (int, float)):
            raise ValueError(f"{name}: expected a number, got {value!r}")
        if choices is not None and value not in choices:
            raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")


@contextmanager
def _without_warnings() -> Iterator[Any]:
    """Silences Optuna's warnings about its experimental parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
