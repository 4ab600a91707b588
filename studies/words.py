"""Command line of a study: a place for its results, and options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from raymi.errors import UserError
from raymi.fields import Section
from raymi.overrides import flatten, read_options, split_words

Options = TypeVar("Options", bound=Section)


def read_words(
    words: Sequence[str], section: type[Options], *, needs_place: bool = False
) -> tuple[Options, str | None]:
    """Returns the options of a study, and the place that is given; None: none.

    Args:
        words: of the command line, without the program.
        section: that declares the options.
        needs_place: whether a place must be given.

    Raises:
        UserError: a line for each problem; the settings of a study are fixed.
    """
    parsed = split_words(words, section, lambda word: "=" not in word)
    options, wrong = read_options(section, parsed.own)
    problems = [*parsed.problems, *wrong]
    if parsed.settings or len(parsed.others) > 1 or (needs_place and not parsed.others):
        given = ", ".join([*flatten(parsed.settings), *parsed.others[1:]]) or "nothing"
        names = ", ".join(section.model_fields)
        problems.append(f"expected OUT and {names}, got {given}: the settings are fixed")
    if problems:
        raise UserError("\n".join(problems))
    return options, next(iter(parsed.others), None)
