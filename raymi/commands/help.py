"""Help of a command, generated from its options and the settings that it accepts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from raymi.commands.command_line import Command
from raymi.config import Config
from raymi.errors import UserError
from raymi.fields import NEEDED
from raymi.formatting import as_typed
from raymi.overrides import (
    default_text,
    expected,
    flatten,
    leaves,
    listings,
    resolved_lines,
    split_words,
    typed_as,
)
from raymi.recipes import BASE_RECIPES, RECIPES, build_config
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_lines

_OPTIONS = "options of this command; --key VALUE and key=VALUE mean the same"
_KEYS = "keys, set as key=value; a unique last part is enough (lr=1e-3, eps=8/255)"
_COMMON = (
    "name",
    "seed",
    "data.name",
    "data.root",
    "model.name",
    "attack.eps",
    "mi.form",
    "optim.epochs",
    "optim.lr",
    "scaling.workers",
)
"""Keys that people change most."""
_FEW = 16
"""Number of options and keys up to which help shows all."""


def print_help(command: Command[Any], words: Sequence[str] = ()) -> None:
    """Prints the help of a command, wrapped on a terminal.

    `--help` prints one screen; `--help all` every option and key; `--help KEY` one of them, with
    the names that it takes; `--help recipe=NAME` a recipe. Values are those of the recipe in
    `words`, or of the command's usual one.

    Args:
        command: whose help is printed.
        words: of the command line.

    Raises:
        UserError: an unknown key.
    """
    own = dict(leaves(command.options))
    keys = {key: field for key, field in leaves() if command.takes(key)}
    recipe = _asked_recipe(own, words)
    topics = [word for word in words if "=" not in word and word not in ("--help", "-h")]
    values = _values(own | keys, recipe or command.default_recipe)
    if topics[:1] == ["all"] or not (topics or recipe or len(own | keys) > _FEW):
        _print_all(command, own, keys, values)
    elif topics:
        key = _find(topics[0], command, own | keys)
        _show_key(key, (own | keys)[key], values[key])
        _show_listings({key: (own | keys)[key]})
    elif recipe:
        _print_recipe(recipe)
    else:
        _print_screen(command, own, keys, values)


def _print_screen(
    command: Command[Any],
    own: Mapping[str, FieldInfo],
    keys: Mapping[str, FieldInfo],
    values: Mapping[str, str],
) -> None:
    """Prints usage, description, options, the keys of `_COMMON`, and where the rest is."""
    _show_top(command, with_keys=bool(keys))
    _show_names("options", {key: _first_sentence(field) for key, field in own.items()})
    common = {f"{k}={values[k]}": _first_sentence(keys[k]) for k in _COMMON if k in keys}
    if common:
        of = command.default_recipe
        _show_names(f"keys{f', with the values of recipe={of}' if of else ''}", common)
    if "recipe" in own:
        _show("")
        _show(f"recipes: {', '.join(BASE_RECIPES)}", indent=2)
    more = {
        "--help all": f"all {len({**own, **keys})} options and keys, with types and documentation",
        "--help KEY": "one of them, and the names that it takes: --help "
        + ", --help ".join([key for key, field in own.items() if listings(field)] or ["data.name"]),
    }
    if "recipe" in own:
        more["--help recipe=NAME"] = "hardware, time, accuracy and settings of a recipe"
    _show_names("more", more)


def _print_all(
    command: Command[Any],
    own: Mapping[str, FieldInfo],
    keys: Mapping[str, FieldInfo],
    values: Mapping[str, str],
) -> None:
    """Prints usage, description, lists of names, options and keys."""
    _show_top(command, with_keys=bool(keys))
    _show_listings({**own, **keys})
    for heading, fields in {_OPTIONS: own, _KEYS: keys}.items():
        if fields:
            _show("")
            _show(heading, style="bold")
        for key, field in fields.items():
            _show_key(key, field, values[key])


def _asked_recipe(own: Mapping[str, FieldInfo], words: Sequence[str]) -> str | None:
    asked = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
    return asked[0] if "recipe" in own and asked and asked[0] in RECIPES else None


def _values(fields: Mapping[str, FieldInfo], recipe: str | None) -> dict[str, str]:
    """Returns the value of each option and key as it would be typed."""
    values = {key: default_text(field) for key, field in fields.items()}
    if recipe is not None:
        config = flatten(build_config(recipe).model_dump())
        values |= {key: as_typed(value) for key, value in config.items() if key in fields}
    return values


def _find(word: str, command: Command[Any], fields: Mapping[str, FieldInfo]) -> str:
    """Returns a key by its whole name or a unique last part.

    Raises:
        UserError: no key of the command, or several.
    """
    parsed = split_words([f"{word}=1"], command.options)
    if parsed.problems:
        raise UserError(parsed.problems[0])
    (key,) = [*parsed.own, *flatten(parsed.settings)]
    if key not in fields:
        raise UserError(f"{command.program} does not use {key}: see --help all")
    return key


def _first_sentence(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    return text.partition(". ")[0].partition("; ")[0].rstrip(".")


def _show_top(command: Command[Any], *, with_keys: bool) -> None:
    _show(f"usage: {usage(command, with_keys=with_keys)}", indent=7)
    for paragraph in command.description.split("\n\n"):
        _show("")
        _show(" ".join(paragraph.split()))


def _show_listings(fields: Mapping[str, FieldInfo]) -> None:
    for key, field in fields.items():
        for listed in listings(field):
            _show_names(f"{listed.heading} ({key}=NAME)", listed.lines())


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


def _show_key(key: str, field: FieldInfo, value: str) -> None:
    _show(f"  {key}={value}  ({expected(field)})", indent=6, style="cyan")
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
