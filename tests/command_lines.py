"""Parsing of command lines that documentation shows, by each command's own parser.

Nothing is started, and no data or run is needed beyond what `placeholder_runs` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

from raymi import train
from raymi.overrides import validate
from raymi.recipes import build_config, named_recipe, on_recipe
from raymi.runs.run_folder import RunFolder


def parse(command: str, words: Sequence[str]) -> None:
    """Parses the words of a command.

    Args:
        command: `raymi.train` and so on.
        words: words after the command.

    Raises:
        UserError: a word is wrong.
        AssertionError: the same, for commands that parse and run in one function.
        KeyError: unknown command.
    """
    if "--help" not in words:
        PARSERS[command](list(words))


def placeholder_runs(folder: Path, names: Iterable[str]) -> None:
    """Makes runs of the quickstart without weights, so that names such as RUN can be found."""
    for name in names:
        run = RunFolder(folder / "runs" / name)
        run.path.mkdir(parents=True)
        run.write_config(build_config("quickstart"))
        run.weights("estimators").touch()


def _train(words: list[str]) -> None:
    if any(word.startswith("resume=") for word in words):
        _accepts("raymi.commands.train.options", words)
    else:
        assert train.main([*words, "--dry-run"]) == 0


def _standalone(words: list[str]) -> None:
    line = resolve_name("raymi.commands.standalone.options:COMMAND").parse(words)
    assert "name" in line.settings
    _, tree, problems = named_recipe(line.options.recipe, line.tree)
    assert [*line.problems, *problems] == []
    validate(*on_recipe(line.options.recipe or "quickstart", tree))


def _tune(words: list[str]) -> None:
    if any(word.startswith("resume=") for word in words):
        _accepts("raymi.commands.tune.options", words)
    else:
        _run_parser("raymi.commands.tune.options:open_sweep", words)


def _accepts(module: str, words: list[str]) -> None:
    """Checks keys and values, and no run."""
    line = resolve_name(f"{module}:COMMAND").parse(words)
    line.refuse()
    validate(line.tree)


def _run_parser(name: str, words: list[str]) -> None:
    """Calls a command's own parser, `module:function`."""
    resolve_name(name)(words)


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "raymi.train": _train,
    "raymi.standalone": _standalone,
    "raymi.evaluate": partial(_run_parser, "raymi.commands.evaluate.options:requested"),
    "raymi.tune": _tune,
    "raymi.select": partial(_run_parser, "raymi.commands.select.options:requested"),
    "raymi.report": partial(_run_parser, "raymi.commands.report.options:plan_report"),
    "raymi.compare": partial(_run_parser, "raymi.commands.compare.options:plan_comparison"),
    "raymi.probe": partial(_accepts, "raymi.commands.probe.options"),
    "raymi.export": partial(_accepts, "raymi.commands.export.options"),
    "raymi.bench": partial(_run_parser, "raymi.commands.bench.options:requested"),
}
