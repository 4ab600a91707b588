"""Splits a command line into options of the command and settings of `Config`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raymi.overrides import examine, flatten, nest, split_words


class CommandLine(NamedTuple):
    """Words of a command line.

    Args:
        options: of the command, as text.
        settings: of `Config` that the command accepts, as text by key.
        problems: a line for each word that is refused.
    """

    options: dict[str, str]
    settings: dict[str, Any]
    problems: list[str]


def split_command_line(
    words: Sequence[str],
    options: Mapping[str, Iterable[str]],
    takes: Callable[[str], bool],
    refusal: Callable[[str], str],
) -> CommandLine:
    """Splits a command line; values are not checked.

    Args:
        words: `key=value` each.
        options: of the command, with their known values.
        takes: returns whether the command accepts a key of `Config`.
        refusal: returns the message for a key that it does not accept.
    """
    parsed = split_words(words, options)
    settings = flatten(parsed.settings)
    refused = [refusal(key) for key in settings if not takes(key)]
    accepted = {key: value for key, value in settings.items() if takes(key)}
    return CommandLine(parsed.own, accepted, [*parsed.problems, *refused])


def value_problems(settings: Mapping[str, Any]) -> list[str]:
    """Checks given settings by themselves; a run may supply the others.

    Args:
        settings: as text by key.

    Returns:
        A line for each invalid value.
    """
    # The norm may be that of the run; l2 allows the larger radii.
    return examine(nest({"data.name": "digits", "attack.norm": "l2", **settings}))[1]
