"""A sweep in a folder: what was asked for, the state of the search, and a run for each trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from raymi.config import Config
from raymi.engine.journal import JournalReader
from raymi.engine.run_folder import RunFolder
from raymi.errors import UserError
from raymi.files import alone, keep, not_writable
from raymi.overrides import flatten, nest, overlay, validate
from raymi.recipes import on_recipe
from raymi.sweeps.settings import TuneConfig
from raymi.sweeps.space import Space, Values
from raymi.sweeps.study import Halving, Study, Trial


class Definition(BaseModel):
    """What decides a sweep: space, recipe, settings laid over all trials (keys of `Config`), how it
    searches, and the command that began it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    command: str
    space: Space
    recipe: str
    settings: dict[str, Any]
    tune: TuneConfig


class Measured(NamedTuple):
    """A trial after an epoch: accuracies on validation, of the best epoch by robust accuracy so
    far."""

    epoch: int
    clean: float
    robust: float


def better(before: Sequence[Measured], now: Measured) -> Measured:
    """What a trial has reached with an epoch, after those before it."""
    best = max([*before[-1:], now], key=lambda one: (one.robust, one.clean))
    return best._replace(epoch=now.epoch)


class Sweep:
    """The folder of a sweep.

    Args: path.
    Raises: UserError where it is not one, or is of another version of raymi.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop_file = path / "stop"
        try:
            content = (path / "sweep.json").read_text()
            self.definition = Definition.model_validate_json(content)
        except OSError:
            raise UserError(f"{path} is not a sweep of raymi: it has no sweep.json") from None
        except ValidationError:
            raise UserError(
                f"{path / 'sweep.json'} is damaged, or of another version of raymi: begin a new "
                "sweep, or use that version"
            ) from None

    @classmethod
    def begin(cls, path: Path, definition: Definition) -> Sweep:
        """Makes the folder of a new sweep.

        Raises: UserError where there is one already; StorageError where it cannot be written.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(
                f"the sweep {path.name} is there already: continue it with resume={path.name}, or "
                "choose another name"
            ) from None
        except OSError as error:
            raise not_writable(path, error) from None
        keep(path / "sweep.json", definition.model_dump_json(indent=2).encode())
        return cls(path)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    @property
    def num_trials(self) -> int:
        """How many trials there will be."""
        most = len(list(self.definition.space.grid()))
        grid = self.definition.tune.search == "grid"
        return min(self.definition.tune.trials, most) if grid else self.definition.tune.trials

    def alone(self) -> AbstractContextManager[None]:
        """Keeps a second command out.

        Raises: UserError in the second one.
        """
        refusal = f"the sweep {self.name} is going on in another process: wait for it, or stop it"
        return alone(self.path / ".lock", refusal)

    def study(self) -> Study:
        """The state of the search."""
        tune, config = self.definition.tune, self.config_of({})
        halving = None
        if tune.scheduler == "asha" and tune.objective == "robust":
            halving = Halving(tune.first_epochs, max(2, tune.factor))
        return Study(
            self.path / "study.db",
            self.definition.space,
            method=tune.search,
            objectives=tune.objectives,
            halving=halving,
            seed=config.seed,
        )

    def config_of(self, values: Values, number: int | None = None) -> Config:
        """The configuration of a trial: the recipe, what holds for all trials, and what it drew.

        Raises: UserError where the drawn values do not fit.
        """
        common = nest(self.definition.settings)
        tree, problems = on_recipe(self.definition.recipe, common)
        tree = overlay(tree, self.definition.space.settings(values))
        if number is not None:
            place = {"name": self.folder_of(number).name, "out": str(self.path / "trials")}
            tree = {**tree, **place}
        return validate(tree, problems)

    def folder_of(self, number: int) -> RunFolder:
        """The run of a trial."""
        return RunFolder(self.path / "trials" / f"{number:04d}")

    def measured(self, number: int) -> list[Measured]:
        """What a trial reached, after each epoch of its classifier that was validated."""
        by_epoch: dict[int, Measured] = {}
        for event in JournalReader(self.folder_of(number).journal).new_events():
            if event["kind"] == "epoch" and event["phase"] == "classifier" and event["val"]:
                val = event["val"]
                now = Measured(event["epoch"], val["clean_acc"], val["robust_acc"])
                by_epoch[now.epoch] = now  # that of a repeated epoch is the one that counts
        reached: list[Measured] = []
        for epoch in sorted(by_epoch):
            reached.append(better(reached, by_epoch[epoch]))
        return reached

    def settings_in_words(self, trial: Trial) -> Iterator[str]:
        """What a trial set, as `key=value`."""
        for key, value in flatten(self.definition.space.settings(trial.values)).items():
            yield f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


def find_sweep(name: str, home: Path) -> Sweep:
    """The sweep of a name in a folder, or of a path.

    Raises: UserError with what there is.
    """
    for path in (home / name, Path(name).expanduser().absolute()):
        if (path / "sweep.json").is_file():
            return Sweep(path)
    known = ", ".join(sorted(path.parent.name for path in home.glob("*/sweep.json"))) or "none"
    raise UserError(f"no sweep {name!r} in {home}; there: {known}. Give its name, or its path")
