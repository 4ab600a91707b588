"""Search spaces: the settings that a sweep varies, in a TOML file.

    description = "How strong the MI terms are"

    [parameters."mi.balance"]            # a key of the configuration
    log = [0.02, 1.0]                    # a number between these, log-uniform

    [parameters.terms]                   # any other name: each choice sets several keys
    choice.both = {}
    choice.natural = { "mi.adversarial" = false }

    [parameters."mi.difference"]
    uniform = [0.0, 2.0]
    when.terms = "both"                  # drawn only if another parameter has this value,
    when."mi.form" = ["bounded"]         # or if the recipe has one of these values of a key

    [tune]                               # defaults of the search
    trials = 50

Other kinds: `integers = [1, 5]`, both ends included, and `choice = [64, 128]`. Two parameters may
set the same key if no trial draws both.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Protocol

import optuna
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from raymi.errors import UserError, did_you_mean, first_line
from raymi.formatting import shown
from raymi.local_paths import address_problem
from raymi.mi.forms.registry import forms
from raymi.mi.settings import MIConfig
from raymi.overrides import examine, flatten, leaves, nest, overlay
from raymi.recipes import VARIANTS, on_recipe
from raymi.tuning.settings import TuneConfig
from raymi.tuning.space_files import known_spaces, space_file

Scalar = bool | int | float | str
Values = dict[str, Any]
"""Drawn values of a trial by parameter, without the parameters whose condition does not hold."""

_KEYS = dict(leaves())
_TABLES = ("description", "parameters", "tune")
_KINDS = ("log", "uniform", "integers", "choice")
_NOT_VARIED = (
    "seed", "name", "out", "data.", "attack.norm", "attack.eps", "scaling.", "validation.",
    "evaluation.", "probe.", "checkpoint.", "limit.", "tracking.",
)  # fmt: skip
_COMPARABLE = ("data.flip", "data.crop_padding", "data.augment", "data.generated")
_WEIGHTS = {"mi.weight", "mi.balance"}
_NUM_CHECKED = 20  # draws that are checked against a recipe
_MOST_INTEGERS = 100_000  # of a grid
_LARGEST_INTEGER = 10**15  # that Optuna draws exactly
_STEPS = 3  # grid values of a number


class Draws(Protocol):
    """Source of values, one parameter at a time, such as an `optuna.Trial`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Returns a number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Returns an integer in [low, high]."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Returns one of the choices."""


def random_draws(seed: int) -> Draws:
    """Returns uniform draws, which depend on the order of the calls."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed % 2**32)
    return optuna.create_study(sampler=sampler).ask()


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if not (ends[0] < ends[1] and math.isfinite(ends[0]) and math.isfinite(ends[1])):
        raise ValueError(
            f"expected two finite ends, the smaller one first, got {shown(list(ends))}"
        )
    return ends


def _countable(ends: tuple[int, int]) -> tuple[int, int]:
    if max(map(abs, ends)) > _LARGEST_INTEGER:
        raise ValueError(f"expected whole numbers up to 10**15, got {shown(list(ends))}")
    return ends


Ends = Annotated[tuple[float, float], AfterValidator(_ordered)]
WholeEnds = Annotated[tuple[int, int], AfterValidator(_ordered), AfterValidator(_countable)]


class Parameter(BaseModel):
    """Parameter of a space: exactly one kind, and an optional condition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: Ends | None = None
    uniform: Ends | None = None
    integers: WholeEnds | None = None
    choice: tuple[Scalar, ...] | dict[str, dict[str, Scalar]] | None = None
    when: dict[str, Scalar | tuple[Scalar, ...]] = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(_KINDS)}, got {given or 'none'}")
        if self.log is not None and self.log[0] <= 0:
            raise ValueError(f"log needs positive ends, got {list(self.log)}")
        if self.choice is not None and len(set(self.choice)) < max(2, len(self.choice)):
            raise ValueError(f"expected at least two different choices, got {list(self.choice)}")
        return self

    @property
    def sets_keys(self) -> bool:
        """True if each choice names the keys that it sets."""
        return isinstance(self.choice, dict)

    def draw(self, name: str, draws: Draws) -> Any:
        """Draws a value."""
        if self.log is not None:
            return draws.suggest_float(name, *self.log, log=True)
        if self.uniform is not None:
            return draws.suggest_float(name, *self.uniform)
        if self.integers is not None:
            return draws.suggest_int(name, *self.integers)
        assert self.choice is not None
        return draws.suggest_categorical(name, list(self.choice))

    def grid(self) -> list[Any]:
        """Returns the grid values: ends and middle of a range, all integers, or all choices."""
        if self.log is not None:
            low, high = map(math.log, self.log)
            inner = [math.exp(low + (high - low) * k / (_STEPS - 1)) for k in range(_STEPS)]
            return [self.log[0], *inner[1:-1], self.log[1]]
        if self.uniform is not None:
            low, high = self.uniform
            return [low + (high - low) * k / (_STEPS - 1) for k in range(_STEPS)]
        if self.integers is not None:
            low, high = self.integers
            return list(range(low, min(high, low + _MOST_INTEGERS) + 1))
        assert self.choice is not None
        return list(self.choice)


class Space(BaseModel):
    """Search space, named after its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    parameters: dict[str, Parameter]
    tune: dict[str, Scalar] = {}

    @model_validator(mode="after")
    def _names_mean_something(self) -> Space:
        if not self.parameters:
            raise ValueError("expected at least one parameter")
        set_by: dict[str, list[str]] = {}
        for name, parameter in self.parameters.items():
            for key in sorted(_keys_set_by(name, parameter)):
                if key not in _KEYS:
                    raise ValueError(f"unknown key {key!r}: {_suggested(key)}")
                set_by.setdefault(key, []).append(name)
        earlier: list[str] = []
        for name, parameter in self.parameters.items():
            for other, values in parameter.when.items():
                if other in earlier:
                    _check_condition(name, other, self.parameters[other], values)
                elif other in set_by or other not in _KEYS:
                    setters = "".join(f" ({one} sets it)" for one in set_by.get(other, []))
                    raise ValueError(
                        f"{name} depends on {other!r}, which must be a parameter before it, or a "
                        f"key that no parameter sets{setters}"
                    )
                else:
                    _check_value(name, other, values)
            earlier.append(name)
        for key, names in set_by.items():
            for first, second in itertools.combinations(names, 2):
                if not self._exclude_each_other(key, first, second):
                    raise ValueError(
                        f"both {first} and {second} set {key}: keep one, or draw one of them only "
                        "(when)"
                    )
        return self

    def _exclude_each_other(self, key: str, first: str, second: str) -> bool:
        """Returns whether the first parameter sets a key in no trial that draws the second."""
        one, other = self._conditions(first), self._conditions(second)
        choice = self.parameters[first].choice
        if isinstance(choice, dict):  # its choices that set the key
            one[first] = {value for value in choice if key in choice[value]}
        return any(one[name].isdisjoint(other[name]) for name in one.keys() & other.keys())

    def _conditions(self, name: str) -> dict[str, set[Scalar]]:
        """Returns the conditions of a parameter and of those on which it depends."""
        found: dict[str, set[Scalar]] = {}
        for other, values in self.parameters[name].when.items():
            found |= self._conditions(other) if other in self.parameters else {}
            found[other] = set(_as_tuple(values))
        return found

    @field_validator("tune")
    @classmethod
    def _search_can_be_read(cls, tune: dict[str, Scalar]) -> dict[str, Scalar]:
        try:
            TuneConfig.model_validate(tune)
        except ValidationError as error:
            lines = [_error_text(one, TuneConfig.model_fields) for one in error.errors()]
            raise ValueError("; ".join(lines)) from None
        return tune

    @cached_property
    def keys(self) -> set[str]:
        """Keys of `Config` that a trial may set."""
        return set().union(*(_keys_set_by(*one) for one in self.parameters.items()))

    def fitted(self, recipe: str, settings: Mapping[str, Any] | None = None) -> Space:
        """Returns the space of a recipe: conditions on keys hold, or the parameter is left out.

        Args:
            recipe: Name in `RECIPES`.
            settings: Nested settings of all trials.
        """
        config, _ = examine(on_recipe(recipe, settings or {})[0])
        having = flatten(config.model_dump())
        kept: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            on_keys = parameter.when.keys() - self.parameters.keys()
            rest = {k: wanted for k, wanted in parameter.when.items() if k not in on_keys}
            holds = all(having[key] in _as_tuple(parameter.when[key]) for key in on_keys)
            if holds and rest.keys() <= kept.keys():
                kept[name] = parameter.model_copy(update={"when": rest})
        return Space.model_construct(
            name=self.name, description=self.description, parameters=kept, tune=self.tune
        )

    def draw(self, draws: Draws) -> Values:
        """Draws the values of a trial; skips parameters whose condition does not hold.

        A space with conditions on keys is `fitted` first.
        """
        assert self._is_fitted
        values: Values = {}
        for name, parameter in self.parameters.items():
            if _is_active(parameter, values):
                values[name] = parameter.draw(name, draws)
        return values

    def grid(self) -> Iterator[Values]:
        """Yields every distinct combination of the parameters' grid values."""
        assert self._is_fitted
        seen: set[frozenset[tuple[str, Any]]] = set()
        names = list(self.parameters)
        for combination in itertools.product(*(p.grid() for p in self.parameters.values())):
            values: Values = {}
            for name, value in zip(names, combination, strict=True):
                if _is_active(self.parameters[name], values):
                    values[name] = value
            drawn = frozenset(values.items())
            if drawn not in seen:
                seen.add(drawn)
                yield values

    def random(self, seed: int) -> Values:
        """Draws the values of a trial uniformly."""
        return self.draw(random_draws(seed))

    @cached_property
    def _is_fitted(self) -> bool:
        """True if no condition is on a key of the recipe."""
        return all(one.when.keys() <= self.parameters.keys() for one in self.parameters.values())

    @cached_property
    def _examples(self) -> list[Values]:
        """Random draws, and variants of them with the ends of each parameter."""
        examples = []
        for values in map(self.random, range(_NUM_CHECKED)):
            examples.append(values)
            for name in values:
                free = not any(name in other.when for other in self.parameters.values())
                examples += [{**values, name: end} for end in self._ends(name) if free]
        return examples

    def _ends(self, name: str) -> list[Any]:
        """Returns the first and the last value of a parameter."""
        parameter = self.parameters[name]
        ends = parameter.log or parameter.uniform or parameter.integers
        values: list[Any] = list(ends or parameter.choice or ())
        return [values[0], values[-1]]

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of drawn values as a nested tree."""
        flat: dict[str, Any] = {}
        for name, value in values.items():
            choice = self.parameters[name].choice
            flat |= choice[value] if isinstance(choice, dict) else {name: value}
        return nest(flat)

    def incompatible(self, recipe: str, settings: Mapping[str, Any] | None = None) -> str | None:
        """Returns the reason for which the space cannot vary a recipe; None: it can.

        Args:
            recipe: Name in `RECIPES`.
            settings: Nested settings of all trials.
        """
        tree, unknown = on_recipe(recipe, settings or {})
        if unknown:
            return unknown[0]
        config, _ = examine(tree)
        space = self.fitted(recipe, settings)
        if not space.parameters:
            return f"none of its parameters is for the recipe {recipe}"
        if any(key.startswith("mi.") for key in space.keys) and not config.mi.enabled:
            return f"the recipe {recipe} has no MI term: choose one that has"
        drawn = [space.settings(values) for values in space._examples]
        trials = [overlay(tree, settings) for settings in drawn]
        for variant in VARIANTS:
            fixed = flatten(VARIANTS[variant].settings) if recipe.endswith(f"-{variant}") else {}
            changed = {
                key
                for key in fixed.keys() - _WEIGHTS
                for one in (drawn if key in space.keys else trials)
                if flatten(one).get(key) != fixed[key]
            }
            if changed:
                return f"the recipe {recipe} is defined by {', '.join(sorted(changed))}"
        for values, settings, trial in zip(space._examples, drawn, trials, strict=True):
            config, problems = examine(trial)
            if not problems:
                problems = _unused(config.mi, flatten(settings))
            if problems:
                return f"{values} does not fit the recipe {recipe}: {problems[0]}"
        return None


def find_space(name: str) -> Space:
    """Returns a search space.

    Args:
        name: Path of a .toml file, or the name of one in `space_files.space_folders`.

    Raises:
        UserError: The file is missing or invalid; the message says what to change.
    """
    if problem := address_problem(name):
        raise UserError(f"space: {problem}")
    file = space_file(name)
    if file is None:
        hint = did_you_mean(name, known_spaces())
        raise UserError(f"no search space {shown(name)}: {hint}; or give the path of a .toml file")
    return read_space(file)


def read_space(path: Traversable) -> Space:
    """Reads a space from a file.

    Raises:
        UserError: The file is invalid; the message says what to change.
    """
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except (ValueError, RecursionError) as error:  # of TOML, UTF-8 and numbers
        raise UserError(f"{path} is not TOML: {first_line(error)}") from None
    if "name" in tree:
        raise UserError(f"{path}: name: unknown, leave it out: a space has the name of its file")
    try:
        space = Space.model_validate({**tree, "name": path.name.removesuffix(".toml")})
    except ValidationError as error:
        lines = [_error_text(one) for one in error.errors()]
        raise UserError("\n".join(f"{path}: {line}" for line in dict.fromkeys(lines))) from None
    for key in sorted(space.keys):
        if key not in _COMPARABLE and key.startswith(_NOT_VARIED):
            raise UserError(
                f"{path}: {key} cannot be varied, as trials could not be compared: leave it out, "
                "and set it in the command for all trials"
            )
    return space


def _suggested(key: str) -> str:
    """Returns a remedy for an unknown key: its full name, or a similar key."""
    whole = [known for known in _KEYS if known.endswith(f".{key}")]
    return f"write {' or '.join(whole)}" if whole else did_you_mean(key, _KEYS)


def _keys_set_by(name: str, parameter: Parameter) -> set[str]:
    if not isinstance(parameter.choice, dict):
        return {name}
    return {key for settings in parameter.choice.values() for key in settings}


def _unused(mi: MIConfig, flat: Mapping[str, Any]) -> list[str]:
    """Returns a line if a form without settings of its own has keys of `mi` beside the weight."""
    form = forms().get(mi.form)
    keys = sorted(key for key in flat if key.startswith("mi.") and key != "mi.form")
    keys = [key for key in keys if key not in _WEIGHTS]
    if form is None or form.keys is not None or form.uses_estimators or not keys:
        return []
    return [f"form={mi.form} does not use {', '.join(keys)}"]


def _as_tuple(values: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    return values if isinstance(values, tuple) else (values,)


def _is_active(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Returns whether the conditions hold, of which none is on a key of the recipe."""
    return all(
        name in values and values[name] in _as_tuple(wanted)
        for name, wanted in parameter.when.items()
    )


def _check_condition(
    name: str, other: str, parameter: Parameter, values: Scalar | tuple[Scalar, ...]
) -> None:
    if parameter.choice is None:
        raise ValueError(f"{name} depends on {other!r}, which has no choices")
    for value in _as_tuple(values):
        if value not in parameter.choice:
            choices = ", ".join(map(str, parameter.choice))
            raise ValueError(f"{name} depends on {other} = {value!r}, whose choices are {choices}")


def _check_value(name: str, key: str, values: Scalar | tuple[Scalar, ...]) -> None:
    """Checks the values of a key on which a parameter depends."""
    accepted: TypeAdapter[Any] = TypeAdapter(_KEYS[key].rebuild_annotation())
    for value in _as_tuple(values):
        try:
            same = accepted.validate_python(value) == value
        except ValidationError as error:
            message = _error_text(error.errors()[0])
            raise ValueError(f"{name} depends on {key} = {value!r}: {message}") from None
        if not same:
            raise ValueError(f"{name} depends on {key} = {value!r}, which no setting equals")


def _error_text(error: Any, known: Iterable[str] | None = None) -> str:
    """Returns a line for one of pydantic's errors in a space, or in a table with `known` keys."""
    parts = [str(part) for part in error["loc"]]
    key = ".".join(parts[1:] if parts[:1] == ["parameters"] and len(parts) > 1 else parts)
    if error["type"] == "extra_forbidden":
        known = known or (_TABLES if len(parts) == 1 else Parameter.model_fields)
        return f"{key}: unknown, {did_you_mean(parts[-1], known)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
