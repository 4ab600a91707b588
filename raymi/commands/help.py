"""Help of a command, generated from its options and the settings that it accepts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from raymi.commands.command_line import Command
from raymi.config import Config
from raymi.fields import NEEDED
from raymi.overrides import (
    default_text,
    expected,
    leaves,
    listings,
    resolved_lines,
    typed_as,
)
from raymi.recipes import RECIPES, build_config
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_lines

_KEYS = "keys, set as key=value; a unique last part is enough (lr=1e-3, eps=8/255)"


def print_help(command: Command[Any], words: Sequence[str] = ()) -> None:
    """Prints usage, description, lists of names, options and keys; or one recipe.

    Lines are wrapped on a terminal only.

    Args:
        command: whose help is printed.
        words: of the command line; with `recipe=NAME` they ask for the recipe.
    """
    asked = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
    if "recipe" in command.options.model_fields and asked and asked[0] in RECIPES:
        _print_recipe(asked[0])
        return
    own = dict(leaves(command.options))
    keys = {key: field for key, field in leaves() if command.takes(key)}
    _show(f"usage: {usage(command, with_keys=bool(keys))}", indent=7)
    for paragraph in command.description.split("\n\n"):
        _show("")
        _show(" ".join(paragraph.split()))
    for key, field in (own | keys).items():
        for listed in listings(field):
            _show_names(f"{listed.heading} ({key}=NAME)", listed.lines())
    _show_keys("options of this command; --key VALUE and key=VALUE mean the same", own)
    _show_keys(_KEYS, keys)


def usage(command: Command[Any], *, with_keys: bool) -> str:
    """Returns a command's usage: what it needs, then options in brackets."""
    needed, options = [command.others] if command.others else [], []
    for key, field in leaves(command.options):
        if NEEDED in field.metadata:
            needed.append(typed_as(key, field))
        elif "." not in key:
            options.append(f"[{typed_as(key, field)}]")
    more = ["[key=value ...]"] if with_keys else []
    return " ".join([command.program, *needed, *options, *more, "[--help]"])


def _show(text: str, indent: int = 0, style: str = "") -> None:
    console = Terminal()
    if console.is_terminal and text:
        hanging = " " * indent
        text = textwrap.fill(text, console.width, subsequent_indent=hanging, break_on_hyphens=False)
    print_lines(console, text, style)


def _show_names(heading: str, names: Mapping[str, str]) -> None:
    _show("")
    _show(heading, style="bold")
    width = max(map(len, names), default=0)
    for name, text in names.items():
        _show(f"  {name:<{width}}  {text}", indent=width + 4)


def _show_keys(heading: str, fields: Mapping[str, FieldInfo]) -> None:
    if fields:
        _show("")
        _show(heading, style="bold")
    for key, field in fields.items():
        _show(f"  {key}={default_text(field)}  ({expected(field)})", indent=6, style="cyan")
        _show(" " * 6 + " ".join((field.description or "").split()), indent=6)


def _print_recipe(name: str) -> None:
    """Prints all that is known about a recipe, and the settings that differ from defaults."""
    recipe, config = RECIPES[name], build_config(name)
    about = {
        "hardware": recipe.hardware,
        "time": recipe.time,
        "accuracy": recipe.accuracy,
        "command": f"python -m raymi.train recipe={name}",
    }
    _show_names(f"{name}: {recipe.description}", about)
    usual = set(resolved_lines(Config()))
    _show("")
    _show("settings that differ from the defaults", style="bold")
    for line in resolved_lines(config):
        if line not in usual:
            _show(f"  {line}", style="cyan")
