"""Field types of settings: how text becomes a value, which values are valid, and what help says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from raymi.formatting import printable, shown
from raymi.local_paths import address_problem, local_path

_PART = r"\s*[+-]?[\d._]{1,30}(?:[eE][+-]?\d{1,3})?\s*"
_FRACTION = re.compile(f"{_PART}/{_PART}")
"""Fractions with short exponents: exact arithmetic with long ones takes arbitrarily long."""
_LARGEST = 1e30
"""Largest float of a setting: float32 holds it, and products with it."""
_SMALLEST = 1e-30
"""Smallest positive float of a setting: float32 holds it, and its inverse."""
_MAX_COUNT = 10**12
_MAX_WORKERS = 10_000
_MAX_PATH_LENGTH = 4000
_MAX_NAME = 200
"""Longest name of a run, in bytes; arms and seeds are added to it."""
_MAX_NAME_BYTES = 255
"""Longest name in a path, on Linux and macOS."""


@dataclass(frozen=True)
class Accepts:
    """Accepted values of a field as text, and a word that stands for one in a usage line."""

    text: str
    word: str = "VALUE"


@dataclass(frozen=True, eq=False)  # hashable
class Listed:
    """Names that help lists below a heading, with a line each.

    Args:
        heading: of the list.
        names: descriptions by name, or a function that returns them.
        others: further names that are values of the field.
    """

    heading: str
    names: Mapping[str, str] | Callable[[], Mapping[str, str]]
    others: Collection[str] = ()

    def lines(self) -> Mapping[str, str]:
        """Returns the descriptions by name."""
        return self.names() if callable(self.names) else self.names


NEEDED = "needed"
"""Mark of an option without which a command cannot run."""
WORKERS = Accepts("whole number >= 1, or a range such as 2..8", "N")


class Section(BaseModel):
    """Frozen group of settings; the text under each field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


def at_most(largest: float) -> AfterValidator:
    """Returns a validator that refuses numbers too large, or too close to 0, to compute with."""

    def check(value: Any) -> Any:
        if value is not None and abs(value) > largest:
            raise ValueError(f"expected at most {largest:g}, got {shown(value)}")
        if isinstance(value, float) and 0 < abs(value) < _SMALLEST:
            raise ValueError(f"expected 0 or at least {_SMALLEST:g}, got {shown(value)}")
        return value

    return AfterValidator(check)


def _fraction(value: Any) -> Any:
    """Parses a number written as `8/255`."""
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        try:
            numerator, denominator = map(Fraction, value.split("/"))
            return float(numerator / denominator)
        except (ValueError, ZeroDivisionError, OverflowError):
            return value
    return value


def value_at(value: float | str, progress: float) -> float:
    """Returns the value of a setting that may follow a schedule.

    Args:
        value: a number, or `linear:FIRST:LAST` or `cosine:FIRST:LAST`.
        progress: share of the phase that is over, in [0, 1].
    """
    if not isinstance(value, str):
        return value
    kind, *ends = value.split(":")
    first, last = (float(_fraction(end)) for end in ends)
    share = progress if kind == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return first + (last - first) * share


def _scheduled(*, zero: bool) -> BeforeValidator:
    """Returns a validator of a number, or of a schedule between two numbers."""
    limit = "number >= 0" if zero else "number > 0"

    def check(value: Any) -> Any:
        parts = value.split(":") if isinstance(value, str) else [value]
        kind = parts.pop(0) if len(parts) == 3 else None
        numbers = [_number(part) for part in parts]
        right = all((0 < n <= _LARGEST and n >= _SMALLEST) or (zero and n == 0) for n in numbers)
        if kind not in (None, "linear", "cosine") or not right or len(parts) != (2 if kind else 1):
            raise ValueError(
                f"expected {limit}, linear:FIRST:LAST or cosine:FIRST:LAST, got {shown(value)}"
            )
        return value if kind else numbers[0]

    return BeforeValidator(check)


def _number(value: Any) -> float:
    """Returns a number, also of a text such as 8/255; NaN: it is none."""
    value = _fraction(value)
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _comma_separated(value: Any) -> Any:
    """Parses a tuple written as `0.75,0.9`."""
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[]() ").split(",") if part.strip()]
    return value


def _lower_case(value: Any) -> Any:
    """Accepts `True` for `true`, typed or from Python."""
    return str(value).lower() if isinstance(value, (str, bool)) else value


def _workers(value: Any) -> Any:
    """Parses a number of workers, or a range written as `2..8`; `2..2` becomes 2."""
    text = "" if isinstance(value, int) and abs(value) > 10**9 else str(value).strip()
    least, dots, most = text.partition("..")
    try:
        low, high = int(least), int(most if dots else least)
    except ValueError:
        low = high = 0
    if isinstance(value, (bool, float)) or low < 1:
        raise ValueError(f"expected {WORKERS.text}, got {shown(value)}")
    if max(low, high) > _MAX_WORKERS:
        raise ValueError(f"expected at most {_MAX_WORKERS} workers, got {shown(value)}")
    if high < low:
        raise ValueError(f"expected a range from fewer to more, such as {high}..{low}, got {text}")
    return low if low == high else f"{low}..{high}"


def _identifier(value: str | None) -> str | None:
    if value is None:
        return value
    if not value or set(value) & set("/\\: \t\n") or value.startswith("."):
        raise ValueError(
            f"expected a plain name without spaces, slashes or colons, got {shown(value)}"
        )
    if len(value.encode(errors="replace")) > _MAX_NAME:
        raise ValueError(f"expected a name of at most {_MAX_NAME} bytes, got {shown(value)}")
    if printable(value) != value:
        raise ValueError(f"expected a name without control characters, got {shown(value)}")
    return value


def _no_address(value: Any) -> Any:
    """Refuses `s3://...`, which would become a local folder."""
    if isinstance(value, (str, Path)) and (problem := address_problem(value)):
        raise ValueError(problem)
    return value


def _absolute(path: Path) -> Path:
    """Makes a path absolute, since workers run in another folder."""
    if len(str(path)) > _MAX_PATH_LENGTH:
        raise ValueError(
            f"expected a path of at most {_MAX_PATH_LENGTH} characters, got {shown(str(path))}"
        )
    absolute = local_path(path)
    try:
        longest = max(absolute.parts, key=lambda part: len(part.encode()))
    except UnicodeEncodeError:
        raise ValueError(
            f"expected a path in UTF-8, got {shown(str(absolute))}: rename it, or give a link to it"
        ) from None
    if len(longest.encode()) > _MAX_NAME_BYTES:
        raise ValueError(
            f"expected names of files of at most {_MAX_NAME_BYTES} bytes, got {shown(longest)}"
        )
    return absolute


Real = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0), at_most(_LARGEST)]
Weight = Annotated[
    float | str, _scheduled(zero=True), Accepts("number >= 0, or a schedule such as linear:0:5")
]
Temperature = Annotated[
    float | str, _scheduled(zero=False), Accepts("number > 0, or a schedule such as cosine:1:0.1")
]
NonNegative = Annotated[Real, Field(ge=0), at_most(_LARGEST)]
Share = Annotated[Real, Field(ge=0, lt=1)]
Duration = Annotated[Real, Field(gt=0), at_most(1e6)]
Fractions = Annotated[tuple[Share, ...], BeforeValidator(_comma_separated)]
Count = Annotated[int, Field(ge=1), at_most(_MAX_COUNT)]
Whole = Annotated[int, Field(ge=0), at_most(_MAX_COUNT)]
Seed = Annotated[int, Field(ge=0), at_most(2**63 - 1)]
Images = Annotated[int, Field(ge=1), at_most(2**20)]
Units = Annotated[int, Field(ge=1), at_most(2**16)]
Workers = Annotated[int | str, BeforeValidator(_workers), WORKERS]
Name = Annotated[str, AfterValidator(_identifier)]
Choice = BeforeValidator(_lower_case)
Folder = Annotated[Path, BeforeValidator(_no_address), AfterValidator(_absolute)]
