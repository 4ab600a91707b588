"""Options of `python -m raymi.export`: writes a classifier that runs without raymi.

The format is RobustBench's: weights.pt, a state dict that torch.load(..., weights_only=True) reads,
and architecture.py, which needs torch alone (and the module of a network of your own). It defines
make_model() and load_model(), which verifies the sha256 of weights.pt and returns a torch module of
raw images in [0, 1] to logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from raymi.commands.command_line import Command, CommandLine
from raymi.commands.option_types import NewFolder
from raymi.fields import NEEDED, Section
from raymi.overrides import examine


class ExportOptions(Section):
    """Options of `python -m raymi.export`."""

    model: Annotated[str, NEEDED] = ""
    """A run of raymi (name or folder), a file of weights in it, or a registered model
    (models:/NAME@ALIAS)."""
    which: str | None = None
    """Model of a run, such as last; none: the chosen one."""
    folder: NewFolder | None = None
    """Folder to write; none: exports/NAME."""


def requested(words: Sequence[str]) -> CommandLine[ExportOptions]:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    line = COMMAND.parse(words)
    line.refuse(*examine(line.tree)[1])
    return line


COMMAND: Command[ExportOptions] = Command(
    "export",
    ExportOptions,
    requested,
    "raymi.commands.export.command:export_command",
    takes=lambda key: key == "out",
    refusal=lambda key: f"{key} decides nothing in an export: expected model, which, folder or out",
)
