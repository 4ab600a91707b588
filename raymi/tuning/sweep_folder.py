"""Folder of a sweep: its definition, its study, and a run for each trial and seed."""

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
from raymi.formatting import listed, shown
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
    """Definition of a sweep.

    Attributes:
        id: ID of the sweep in MLflow.
        command: Command that started it.
        space: The search space.
        recipe: Recipe of all trials.
        settings: Settings over the recipe, by key of `Config`.
        seeds: Seeds with which every trial runs.
        tune: Settings of the search.
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
    """Run of a trial with one of the sweep's seeds."""

    number: int
    seed: int


class Measurement(NamedTuple):
    """Validation accuracies of a run after an epoch, or of its best epoch so far."""

    epoch: int
    clean: float
    robust: float

    @classmethod
    def of_epoch(cls, epoch: int, val: Mapping[str, float]) -> Measurement:
        """Creates a measurement from the engine's validation metrics."""
        return cls(epoch, float(val["clean_acc"]), float(val["robust_acc"]))


def best_so_far(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Computes the best accuracies up to each epoch, by robust, then clean accuracy.

    Args:
        measurements: Accuracies of single epochs; the last one counts of a repeated epoch.
    """
    by_epoch = {one.epoch: one for one in measurements}
    best: list[Measurement] = []
    for epoch in sorted(by_epoch):
        leading = max([*best[-1:], by_epoch[epoch]], key=lambda one: (one.robust, one.clean))
        best.append(leading._replace(epoch=epoch))
    return best


class Sweep:
    """Folder of a sweep.

    Args:
        path: The folder.

    Raises:
        UserError: It is no sweep, or one of another version of raymi.
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
                f"{file} is damaged, or of another version of raymi: start a new sweep, or use "
                f"that version ({first_problem(error)})"
            ) from None

    @classmethod
    def begin(cls, path: Path, definition: Definition) -> Sweep:
        """Creates the folder of a new sweep, or opens a sweep with the same definition.

        Raises:
            UserError: The folder is another sweep or has other files.
            StorageError: It cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            existing = [one.name for one in path.iterdir() if not one.name.startswith(".")]
        except OSError as error:
            raise not_writable(path, error) from None
        if "sweep.json" in existing:
            return cls(path)._with(definition)
        if existing:
            raise UserError(f"{path} has files and is no sweep: choose another name")
        save(path / "sweep.json", definition.model_dump_json(indent=2).encode())
        return cls(path)

    def _with(self, definition: Definition) -> Sweep:
        """Returns the sweep itself if it has this definition, whose ID and command may differ."""
        before, now = (
            flatten(one.model_dump(mode="json", exclude={"id", "command"}))
            for one in (self.definition, definition)
        )
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            names = listed(changed)
            raise UserError(
                f"the sweep {self.name} in {self.path.parent} was started with other settings "
                f"({names}): give those of its command to continue it "
                f"({self.definition.command}), or another name"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self.path.name

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with which every trial runs."""
        return self.definition.seeds

    @cached_property
    def num_trials(self) -> int:
        """Number of trials of the complete sweep."""
        tune = self.definition.tune
        if tune.search != "grid":
            return tune.trials
        return min(tune.trials, sum(1 for _ in self.definition.space.grid()))

    def lock(self) -> AbstractContextManager[None]:
        """Locks the sweep for one process.

        Raises:
            UserError: Another process has the lock.
        """
        refusal = f"the sweep {self.name} is running in another process: wait for it, or stop it"
        return file_lock(self.path / ".lock", refusal)

    def study(self) -> Study:
        """Opens the study.

        Raises:
            UserError: Its file is damaged.
        """
        tune = self.definition.tune
        halving = None
        independent = tune.search != "pbt" and len(self.seeds) == 1
        if tune.scheduler == "asha" and tune.objective == "robust" and independent:
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
        """Builds the configuration of a trial: recipe, settings of all trials, drawn values.

        Raises:
            UserError: The drawn values do not fit.
        """
        common = nest(self.definition.settings)
        tree, problems = on_recipe(self.definition.recipe, common)
        tree = overlay(tree, self.definition.space.settings(values))
        tree["seed"] = self.seeds[0]
        if run is not None:
            folder = {"name": self.folder_of(run).name, "out": str(self.trials)}
            tree = {**tree, **folder, "seed": run.seed}
        return validate(tree, problems)

    @property
    def trials(self) -> Path:
        """Folder of the runs."""
        return self.path / "trials"

    @property
    def shared(self) -> Path:
        """Folder of the stages that trials share."""
        return self.path / "shared"

    def runs_of(self, number: int) -> list[TrialRun]:
        """Returns the runs of a trial, one for each seed."""
        return [TrialRun(number, seed) for seed in self.seeds]

    def folder_of(self, run: TrialRun) -> RunFolder:
        """Returns the folder of a run."""
        name = f"{run.number:04d}" + (f"-seed{run.seed}" if len(self.seeds) > 1 else "")
        return RunFolder(self.trials / name)

    def is_finished(self, run: TrialRun) -> bool:
        """Returns whether a run has finished."""
        return self._record(run).finished

    def validation_by_epoch(self, run: TrialRun) -> dict[int, Measurement]:
        """Returns the classifier's accuracies in each validated epoch."""
        return {
            epoch.number: Measurement.of_epoch(epoch.number, epoch.val)
            for epoch in self._record(run).phases.get(CLASSIFIER, ())
            if epoch.val
        }

    def measurements(self, run: TrialRun) -> list[Measurement]:
        """Returns the best accuracies up to each validated epoch, transferred ones included."""
        transferred = [
            Measurement.of_epoch(event["epoch"], event["best"][""])
            for event in self._record(run).of_kind("exploited")
        ]
        return best_so_far([*self.validation_by_epoch(run).values(), *transferred])

    def _record(self, run: TrialRun) -> RunRecord:
        return read_record(self.folder_of(run))

    def settings_words(self, values: Values) -> Iterator[str]:
        """Yields the settings of drawn values as `key=value`."""
        for key, value in flatten(self.definition.space.settings(values)).items():
            yield f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


def find_sweep(name: str, home: Path) -> Sweep:
    """Returns the sweep with a name in a folder, or with a path.

    Raises:
        UserError: No sweep matches; the message lists the existing ones.
    """
    for path in (home / name, local_path(name, "a sweep")):
        if os.path.isfile(path / "sweep.json"):  # false for a name that is too long
            return Sweep(path)
    known = ", ".join(sorted(path.parent.name for path in home.glob("*/sweep.json"))) or "none"
    raise UserError(f"no sweep {shown(name)} in {home}; sweeps: {known}. Give a name or a path")
