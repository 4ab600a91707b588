"""Events of a run's journal, and the types of their fields.

An event is one line of JSON. An event with a field of another type is skipped; a missing field that
a command needs ends the command with a `UserError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from raymi.errors import UserError
from raymi.runs.json_files import type_problem

_STRICT = ConfigDict(strict=True, extra="allow")
_MOST = 2**53
"""Largest whole number that all JSON readers can represent."""


def _number_as_text(value: float | str) -> float | str:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError("expected a number, nan, inf or -inf")
    return value


Number = Annotated[float | str, AfterValidator(_number_as_text)]
"""A number; NaN and infinities, which JSON lacks, are text."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0, le=_MOST)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Side = Annotated[int, Field(ge=1, le=2**16)]
Phase = Literal["pretraining", "estimators", "classifier"]
Which = Literal["best", "last", "best-averaged", "last-averaged"]
MODELS: tuple[Which, ...] = get_args(Which)
"""Models that a run can have; averaged ones with `optim.ema` alone."""
Channels = Annotated[list[Finite], Field(min_length=3, max_length=3)]


@with_config(_STRICT)
class Attack(TypedDict, total=False):
    """Settings of a PGD attack, eps and alpha in [0, 1] pixel units."""

    norm: Literal["linf", "l2"]
    eps: Annotated[Finite, Field(ge=0)]
    alpha: Finite
    steps: Whole
    seed: int


@with_config(_STRICT)
class Data(TypedDict, total=False):
    """Data set of a run: numbers of images, side in pixels, sha256 of each split."""

    name: str
    num_classes: Count
    image_size: Side
    mean: Channels
    std: Channels
    class_names: list[str]
    sizes: dict[str, Whole]
    digests: dict[str, str]
    duplicates: dict[str, Whole]


@with_config(_STRICT)
class _Event(TypedDict, total=False):
    """Fields of every event: position in the run, and seconds since 1970."""

    time: Annotated[Finite, Field(ge=0, le=1e11)]
    phase: Phase
    epoch: Whole
    step: Whole
    global_step: Whole


class Start(_Event, total=False):
    """Start of a session of a run; `initial_weights` is the sha256 of a given file's copy."""

    version: str
    workers: Count
    device: str
    machine: str
    torch: str
    steps_per_epoch: Count
    phases: dict[Phase, Count]
    parameters: dict[str, Whole]
    initial_weights: str
    data: Data


class Step(_Event, total=False):
    """Training metrics: means since the previous event of this kind."""

    metrics: dict[str, Number]
    lr: Finite
    images_per_s: Finite


class Epoch(_Event, total=False):
    """End of an epoch: means over its steps, and validation metrics."""

    train: dict[str, Number]
    val: dict[str, Number]
    lr: Finite
    is_best: bool
    better: list[str]
    train_seconds: Finite
    images_per_s: Finite


class Evaluation(_Event, total=False):
    """Accuracies of a model of the run on the test set, fractions of `num` images."""

    which: Which
    of_epoch: Whole
    attack: Attack
    chosen: bool
    clean: Fraction
    robust: Fraction
    num: Count


class Probed(_Event, total=False):
    """MI estimates of fresh probes and their baselines, in nats."""

    which: Which
    estimates: dict[str, Number]


class Warned(_Event, total=False):
    """Warning of the training."""

    message: str


class Evaluating(_Event, total=False):
    """Progress of a measurement, in images."""

    what: str
    done: Whole
    of: Count


@with_config(_STRICT)
class BestOf(TypedDict, total=False):
    """Origin of a best model after a PBT checkpoint transfer."""

    run: str
    epoch: Whole
    robust_acc: Fraction
    clean_acc: Fraction


class CheckpointTransfer(_Event, total=False):
    """PBT checkpoint transfer from another trial."""

    best: dict[str, BestOf]


@with_config(_STRICT)
class Machine(TypedDict, total=False):
    """System metrics of a machine."""

    time: Annotated[Finite, Field(ge=0, le=1e11)]
    metrics: dict[str, Finite]


_TYPES: dict[str, TypeAdapter[Any]] = {
    "start": TypeAdapter(Start),
    "step": TypeAdapter(Step),
    "epoch": TypeAdapter(Epoch),
    "evaluation": TypeAdapter(Evaluation),
    "probe": TypeAdapter(Probed),
    "warning": TypeAdapter(Warned),
    "evaluating": TypeAdapter(Evaluating),
    "exploited": TypeAdapter(CheckpointTransfer),
    "machine": TypeAdapter(Machine),
}
_ANY: TypeAdapter[Any] = TypeAdapter(_Event)


class Event(dict[str, Any]):
    """An event, or a mapping in it, whose missing fields raise a `UserError`.

    Args:
        fields: of the event.
        path: of the journal, for the message.
        kind: of the event.
    """

    def __init__(self, fields: Mapping[str, Any], path: Path, kind: str) -> None:
        super().__init__(
            {
                key: Event(value, path, f"{kind}.{key}") if isinstance(value, dict) else value
                for key, value in fields.items()
            }
        )
        self._path, self._kind = path, kind

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"{self._path} has events that raymi did not write, or that another version wrote "
            f"(KeyError: {key!r} in {self._kind!r}): bring back the journal as it was, or start a "
            "new run"
        )


def parse_event(value: object, path: Path) -> tuple[Event | None, str]:
    """Parses a line of a journal; returns the event, or None and the reason.

    Args:
        value: parsed JSON of the line.
        path: of the journal.
    """
    if not isinstance(value, dict):
        return None, f"expected an object, got {type(value).__name__}"
    kind = value.get("kind")
    if not isinstance(kind, str):
        return None, "expected an object with a kind"
    problem = type_problem(_TYPES.get(kind, _ANY), value)
    return (Event(value, path, kind), "") if problem is None else (None, f"{kind}: {problem}")
