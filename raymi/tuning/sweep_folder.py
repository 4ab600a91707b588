"""A sweep in a folder: what was asked for, the state of the search, and a run for each trial and
seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raymi.config import Config
from raymi.errors import UserError
from raymi.files import file_lock, not_readable, not_writable, save
from raymi.formatting import shown
from raymi.local_paths import local_path
from raymi.overrides import flatten, leaves, nest, overlay, validate
from raymi.recipes import RECIPES, on_recipe
from raymi.runs.json_files import first_problem
from raymi.runs.record import CLASSIFIER, RunRecord, read_record
from raymi.runs.run_folder import RunFolder
from raymi.tuning.settings import TuneConfig
from raymi.tuning.space import Space, Values
from raymi.tuning.study import Halving, Study


class Definition(BaseModel):
    """Everything that decides a sweep.

    Attributes:
        id: of the sweep in MLflow.
        command: that began it.
        space: that is searched.
        recipe: of all trials.
        settings: laid over the recipe, by keys of `Config`.
        seeds: with each of which every trial runs.
        tune: how it searches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    command: str
    space: Space
    recipe: str
    settings: dict[str, Any]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    tune: TuneConfig

    @model_validator(mode="after")
    def _names_are_known(self) -> Definition:
        known = [key for key, _ in leaves()]
        unknown = [key for key in self.settings if key not in known]
        if unknown or self.recipe not in RECIPES:
            got = unknown or self.recipe
            raise ValueError(f"expected a recipe and keys of this version, got {got!r}")
        return self


class TrialRun(NamedTuple):
    """A trial with one of the sweep's seeds."""

    number: int
    seed: int


class Measurement(NamedTuple):
    """A run after an epoch: accuracies on validation, of the best epoch by robust accuracy so
    far."""

    epoch: int
    clean: float
    robust: float

    @classmethod
    def of_epoch(cls, epoch: int, val: Mapping[str, float]) -> Measurement:
        """Args: val, as the engine validates."""
        return cls(epoch, float(val["clean_acc"]), float(val["robust_acc"]))


def reached(measured: Iterable[Measurement]) -> list[Measurement]:
    """What a run had reached by each epoch, from what was measured in each; of an epoch that was
    repeated, the last one counts."""
    by_epoch = {one.epoch: one for one in measured}
    best: list[Measurement] = []
    for epoch in sorted(by_epoch):
        leading = max([*best[-1:], by_epoch[epoch]], key=lambda one: (one.robust, one.clean))
        best.append(leading._replace(epoch=epoch))
    return best


class Sweep:
    """The folder of a sweep.

    Args: path.
    Raises: UserError where it is not one, or is of another version of raymi.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop_file = path / "stop"
        file = path / "sweep.json"
        if not file.is_file():
            raise UserError(f"{path} is not a sweep of raymi: it has no sweep.json")
        try:
            self.definition = Definition.model_validate_json(file.read_bytes())
        except OSError as error:
            raise not_readable(file, error) from None
        except ValidationError as error:
            raise UserError(
                f"{file} is damaged, or of another version of raymi: begin a new sweep, or use "
                f"that version ({first_problem(error)})"
            ) from None

    @classmethod
    def begin(cls, path: Path, definition: Definition) -> Sweep:
        """Makes the folder of a new sweep.

        Raises: UserError where there is one already; StorageError where it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            there = [one.name for one in path.iterdir() if not one.name.startswith(".")]
        except OSError as error:
            raise not_writable(path, error) from None
        if "sweep.json" in there:
            raise UserError(
                f"the sweep {path.name} is there already: continue it with resume={path.name}, or "
                "choose another name"
            )
        if there:
            raise UserError(f"{path} has files and is no sweep: choose another name")
        save(path / "sweep.json", definition.model_dump_json(indent=2).encode())
        return cls(path)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those with which every trial runs."""
        return self.definition.seeds

    @cached_property
    def num_trials(self) -> int:
        """How many trials there will be."""
        tune = self.definition.tune
        if tune.search != "grid":
            return tune.trials
        return min(tune.trials, sum(1 for _ in self.definition.space.grid()))

    def lock(self) -> AbstractContextManager[None]:
        """Keeps a second command out.

        Raises: UserError in the second one.
        """
        refusal = f"the sweep {self.name} is running in another process: wait for it, or stop it"
        return file_lock(self.path / ".lock", refusal)

    def study(self) -> Study:
        """Opens the state of the search.

        Raises: UserError where it is damaged.
        """
        tune = self.definition.tune
        halving = None
        file_lock = tune.search != "pbt" and len(self.seeds) == 1
        if tune.scheduler == "asha" and tune.objective == "robust" and file_lock:
            halving = Halving(tune.first_epochs, tune.factor)
        return Study(
            self.path / "study.db",
            self.definition.space,
            method=tune.search,
            objectives=tune.objectives,
            halving=halving,
            seed=self.seeds[0],
            size=tune.trials,
        )

    def config_of(self, values: Values, run: TrialRun | None = None) -> Config:
        """The configuration of a trial: the recipe, what holds for all trials, and what it drew.

        Raises: UserError where the drawn values do not fit.
        """
        common = nest(self.definition.settings)
        tree, problems = on_recipe(self.definition.recipe, common)
        tree = overlay(tree, self.definition.space.settings(values))
        tree["seed"] = self.seeds[0]
        if run is not None:
            place = {"name": self.folder_of(run).name, "out": str(self.trials)}
            tree = {**tree, **place, "seed": run.seed}
        return validate(tree, problems)

    @property
    def trials(self) -> Path:
        """Where the runs are."""
        return self.path / "trials"

    @property
    def shared(self) -> Path:
        """Where the runs are whose work trials share."""
        return self.path / "shared"

    def runs_of(self, number: int) -> list[TrialRun]:
        """Those of a trial."""
        return [TrialRun(number, seed) for seed in self.seeds]

    def folder_of(self, run: TrialRun) -> RunFolder:
        """Where a run is."""
        name = f"{run.number:04d}" + (f"-seed{run.seed}" if len(self.seeds) > 1 else "")
        return RunFolder(self.trials / name)

    def is_finished(self, run: TrialRun) -> bool:
        """Whether a run has come to its end."""
        return self._record(run).finished

    def validated(self, run: TrialRun) -> dict[int, Measurement]:
        """What a run's classifier came to in each epoch that was validated."""
        return {
            epoch.number: Measurement.of_epoch(epoch.number, epoch.val)
            for epoch in self._record(run).phases.get(CLASSIFIER, ())
            if epoch.val
        }

    def measured(self, run: TrialRun) -> list[Measurement]:
        """What a run had reached by each epoch of its classifier that was validated, with what it
        took over from others."""
        taken_over = [
            Measurement.of_epoch(event["epoch"], event["best"][""])
            for event in self._record(run).of_kind("exploited")
        ]
        return reached([*self.validated(run).values(), *taken_over])

    def _record(self, run: TrialRun) -> RunRecord:
        return read_record(self.folder_of(run))

    def settings_in_words(self, values: Values) -> Iterator[str]:
        """What a trial set that drew these values, as `key=value`."""
        for key, value in flatten(self.definition.space.settings(values)).items():
            yield f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


def find_sweep(name: str, home: Path) -> Sweep:
    """The sweep of a name in a folder, or of a path.

    Raises: UserError with what there is.
    """
    for path in (home / name, local_path(name, "a sweep")):
        if os.path.isfile(path / "sweep.json"):  # false for a name that is too long
            return Sweep(path)
    known = ", ".join(sorted(path.parent.name for path in home.glob("*/sweep.json"))) or "none"
    raise UserError(f"no sweep {shown(name)} in {home}; there: {known}. Give its name, or its path")
