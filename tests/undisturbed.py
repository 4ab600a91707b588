"""Reference runs that nothing disturbs: the words of a command, on plain processes.

Starting Ray and MLflow would take longer than such a run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from gloo import run_ranks
from raymi_command import write_slow_model
from safetensors.torch import load_file

from raymi.commands.standalone.options import COMMAND
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.overrides import examine
from raymi.recipes import on_recipe
from raymi.runs.run_folder import RunFolder

TIMEOUT = 500  # seconds


def undisturbed(
    folder: Path, *words: str, workers: int = 2, import_path: Path | None = None
) -> RunFolder:
    """Trains in an existing folder.

    Args:
        words: `key=value` of `python -m raymi.train`.
        workers: processes of one thread each.
        import_path: folder of the user's own modules.
    """
    path = None if import_path is None else str(import_path)
    run_ranks(_train, workers, folder, words, path, tmp_path=folder.parent, timeout=TIMEOUT)
    return RunFolder(folder)


def undisturbed_slow_model(home: Path, *words: str) -> RunFolder:
    """Trains the network of `SLOW_MODEL`, without its slowness, in `home / "run"`."""
    write_slow_model(home).touch()
    folder = home / "run"
    folder.mkdir()
    return undisturbed(folder, *words, import_path=home)


def assert_same_weights(run: RunFolder, other: RunFolder, *names: str) -> None:
    """Asserts that the named models of two runs are equal, bit for bit."""
    for name in names:
        weights = load_file(run.weights(name))
        torch.testing.assert_close(load_file(other.weights(name)), weights, rtol=0, atol=0)


def _train(
    _rank: int, _world_size: int, folder: Path, words: tuple[str, ...], import_path: str | None
) -> None:
    if import_path is not None:
        sys.path.insert(0, import_path)
    line = COMMAND.parse(words)
    tree, unknown = on_recipe(line.options.recipe or "quickstart", line.tree)
    config, wrong = examine(tree)
    assert not [*line.problems, *unknown, *wrong]
    run = RunFolder(folder)
    run.write_config(config)
    assert train(config, LocalContext(), run).finished
