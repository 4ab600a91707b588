"""JSON files of a known type: read whole and valid, or refused in one message."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from raymi.errors import UserError
from raymi.formatting import printable, shown

_GIVEN: dict[Any, Any] = {}
Content = TypeVar("Content", bound=BaseModel)


def read_json(path: Path, model: type[Content], remedy: str) -> Content:
    """Reads a JSON file that raymi wrote.

    Args:
        path: of the file.
        model: type of its content.
        remedy: what the user can do where the file is damaged.

    Returns:
        The content.

    Raises:
        UserError: the file cannot be read, or has other content.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {remedy}") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({first_problem(error)}): {remedy}") from None


def read_json_or_none(path: Path, model: type[Content], consequence: str) -> Content | None:
    """Reads a JSON file that raymi can do without, and warns of a damaged one.

    Args:
        path: of the file.
        model: type of its content.
        consequence: what happens without the file.

    Returns:
        The content; None where the file is damaged.
    """
    try:
        return read_json(path, model, consequence)
    except UserError as error:
        warn_once(path, str(error))
        return None


def warn_once(path: Path, message: str) -> None:
    """Warns about a file, once per process and message."""
    warnings.warn_explicit(message, UserWarning, str(path), 1, registry=_GIVEN)


def first_problem(error: ValidationError) -> str:
    """Returns what the first invalid field should be, and what it is."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return printable(f"{place}: {message}")
    if problem["type"] == "json_invalid":
        return printable(message)
    return printable(f"{place + ': ' if place else ''}{message}, got {shown(problem['input'], 80)}")


def missing_keys(whole: BaseModel, tree: object, prefix: str = "") -> list[str]:
    """Returns the keys of a model that a tree of JSON's types lacks, such as `optim.lr`."""
    missing: list[str] = []
    for name in type(whole).model_fields:
        if not isinstance(tree, dict) or name not in tree:
            missing.append(prefix + name)
        elif isinstance(part := getattr(whole, name), BaseModel):
            missing += missing_keys(part, tree[name], f"{prefix}{name}.")
    return missing


def type_problem(adapter: TypeAdapter[object], value: object) -> str | None:
    """Returns why a value is not of a type; None: it is."""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return first_problem(error)
    return None
