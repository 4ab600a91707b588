"""From the words of a command line to a validated `Config`: `key=value`, recipes, suggestions,
help.

A key may be shortened to its last part where that is unique (`lr` for `optim.lr`). Everything that
is wrong is said at once, in one `UserError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from raymi.config import Config
from raymi.errors import UserError

Tree = dict[str, Any]


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that can be set, in the order of the tree, with its pydantic field."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


@dataclass(frozen=True)
class Words:
    """What a command line said: the command's own keys, settings of `Config`, and what is wrong."""

    own: dict[str, str]
    settings: Tree
    problems: list[str]


def split_words(words: Sequence[str], special: Iterable[str] = ()) -> Words:
    """Separates `key=value` words into those of the command itself and a tree of settings.

    Args:
        words: what was typed, such as `["recipe=quickstart", "lr=1e-3"]`.
        special: keys that belong to the command and not to `Config`.
    Returns: the special keys as text, a nested tree of unparsed values, and a line for each word
        without `=` and each unknown, ambiguous or repeated key.
    """
    special = tuple(special)
    keys = [key for key, _ in leaves()]
    own: dict[str, str] = {}
    settings: dict[str, str | None] = {}
    problems: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.removeprefix("--")
        if not equals:
            problems.append(f"expected key=value, got {word!r}{_suggest(key, (*special, *keys))}")
            continue
        if key in special:
            if key in own:
                problems.append(f"{key} is given twice: {own[key]!r} and {text!r}; keep one")
            own[key] = text
        else:
            matches = [key] if key in keys else [k for k in keys if k.endswith("." + key)]
            if len(matches) != 1:
                problems.append(_unknown(key, matches, (*special, *keys)))
                continue
            full = matches[0]
            if full in settings:
                problems.append(f"{full} is given twice: {settings[full]} and {text}; keep one")
            settings[full] = None if text.lower() in ("none", "null", "") else text
    return Words(own, nest(settings), problems)


def nest(flat: Mapping[str, Any]) -> Tree:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    tree: Tree = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """The nested tree `base` with the leaves of `over` in place of its own.

    Two pairs of keys exclude each other, so that setting one replaces the other in `base`:
    `mi.weight` and `mi.balance`; and `mi.form` drops what an earlier form or recipe said of its
    keys.
    """
    base_flat, over_flat = flatten(base), flatten(over)
    if over_flat.get("mi.form") is not None and over_flat["mi.form"] != base_flat.get("mi.form"):
        base_flat = {k: v for k, v in base_flat.items() if not k.startswith("mi.")}
    for one, other in (("mi.weight", "mi.balance"), ("mi.balance", "mi.weight")):
        if over_flat.get(one) is not None and over_flat.get(other) is None:
            base_flat.pop(other, None)
    return nest({**base_flat, **over_flat})


def validate(tree: Mapping[str, Any], problems: Sequence[str] = ()) -> Config:
    """The configuration of a nested tree; what is not given has its default.

    Args: tree; problems, what was found wrong already, to be said together with the rest.
    Raises: UserError that lists every wrong value with what was expected and what came.
    """
    try:
        config = Config.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError("\n".join([*problems, *map(_explain, error.errors())])) from None
    if problems:
        raise UserError("\n".join(problems))
    return config


def resolved_lines(config: Config) -> list[str]:
    """The whole configuration as `key=value` words that would reproduce it."""
    return [f"{k}={_text(v)}" for k, v in flatten(config.model_dump()).items() if v is not None]


def expected(field: FieldInfo) -> str:
    """What a key accepts, in words: `linf | l2`, `number`, `whole number`, `true | false`..."""
    return _expected(field.annotation)


def _expected(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    kinds = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is tuple:
        return "numbers, comma-separated"
    if kinds and type(None) in get_args(annotation):
        return f"{_expected(kinds[0])} | none"
    if kinds:  # Annotated
        return _expected(kinds[0])
    return {float: "number", int: "whole number", bool: "true | false"}.get(annotation, "text")


def default_text(field: FieldInfo) -> str:
    """A key's default as it would be typed."""
    return _text(field.default)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        in_pixels = value * 255
        if 0 < value < 1 and abs(in_pixels - round(in_pixels)) < 1e-9 and value * 100 % 1:
            return f"{round(in_pixels)}/255"
        return f"{value:.12g}"
    if isinstance(value, (tuple, list)):
        return ",".join(map(_text, value))
    return str(value)


def _unknown(key: str, matches: list[str], keys: Sequence[str]) -> str:
    if matches:
        return f"key {key!r} is ambiguous: expected one of {', '.join(matches)}"
    return f"unknown key {key!r}{_suggest(key, keys)}"


def _suggest(word: str, known: Sequence[str]) -> str:
    """`: did you mean ...?`, comparing with whole keys and with their last parts."""
    by_leaf: dict[str, str] = {}
    for key in known:
        by_leaf.setdefault(key.rpartition(".")[2], key)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    leaf = word.rpartition(".")[2]
    close += [by_leaf[k] for k in difflib.get_close_matches(leaf, list(by_leaf), n=2, cutoff=0.6)]
    names = list(dict.fromkeys(close))[:2]
    return f": did you mean {' or '.join(names)}?" if names else " (--help lists every key)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A short remedy for a misspelt name: what is close, or else everything there is."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error" and key.count(".") == 0:
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {error['input']!r}"
