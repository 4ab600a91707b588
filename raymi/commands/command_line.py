"""A command: its options, the settings that it accepts, and its function, imported late."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar

from raymi.errors import UserError
from raymi.fields import Section
from raymi.overrides import Tree, flatten, nest, read_options, split_words

Options = TypeVar("Options", bound=Section)


@dataclass(frozen=True)
class CommandLine(Generic[Options]):
    """Parsed words of a command.

    Args:
        command: whole command line, quoted for a shell.
        options: of the command.
        settings: of `Config` that the command accepts, as text by key.
        others: words that are neither.
        problems: a line for each problem.
    """

    command: str
    options: Options
    settings: dict[str, Any]
    others: list[str]
    problems: list[str]

    @property
    def tree(self) -> Tree:
        """Settings as a nested tree."""
        return nest(self.settings)

    def refuse(self, *problems: str) -> None:
        """Refuses a command line with problems.

        Args:
            *problems: further ones, a line each.

        Raises:
            UserError: with all lines, if there are any.
        """
        if lines := list(dict.fromkeys([*self.problems, *problems])):
            raise UserError("\n".join(lines))


@dataclass(frozen=True)
class Command(Generic[Options]):
    """Command `python -m raymi.NAME`.

    Args:
        name: of the command.
        options: section that declares its options; the text after the first colon of its module's
            docstring describes the command.
        request: parses and checks the words of a command line, without torch.
        function: "module:function" that is called with the request; returns the exit code.
        takes: returns whether the command accepts a key of `Config`.
        refusal: returns the message for a key that it does not accept.
        others: usage of words that are neither options nor settings; empty: none.
        is_other: returns whether a word is one of these.
        default_recipe: recipe of a command line without one; None: the defaults of `Config`.
    """

    name: str
    options: type[Options]
    request: Callable[[Sequence[str]], Any]
    function: str
    takes: Callable[[str], bool] = lambda key: True
    refusal: Callable[[str], str] = str
    others: str = ""
    is_other: Callable[[str], bool] = lambda word: False
    default_recipe: str | None = None

    def __call__(self, words: Sequence[str]) -> int:
        """Runs the command, or prints its help; returns the exit code."""
        if {"--help", "-h"} & set(words):
            from raymi.commands.help import print_help

            print_help(self, words)
            return 0
        request = self.request(words)  # before the import, which may take seconds
        code: int = resolve_name(self.function)(request)
        return code

    def parse(self, words: Sequence[str]) -> CommandLine[Options]:
        """Parses the words of a command line; the result has all problems."""
        given = split_words(words, self.options, self.is_other)
        options, wrong = read_options(self.options, given.own)
        settings = flatten(given.settings)
        refused = [self.refusal(key) for key in settings if not self.takes(key)]
        return CommandLine(
            f"{self.program} {shlex.join(words)}".strip(),
            options,
            {key: value for key, value in settings.items() if self.takes(key)},
            given.others,
            [*given.problems, *refused, *wrong],
        )

    @property
    def program(self) -> str:
        """Words that start the command."""
        return f"python -m raymi.{self.name}"

    @property
    def description(self) -> str:
        """Paragraphs that describe the command."""
        text = (sys.modules[self.options.__module__].__doc__ or "").partition(": ")[2].strip()
        return text[:1].upper() + text[1:]
