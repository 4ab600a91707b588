"""Options of `python -m raymi.probe`: estimates mutual information in a classifier's outputs.

Trains new estimators with a fixed budget on the frozen classifier of a run, also of one that
trained without MI, and prints natural and adversarial MI of its natural and adversarial outputs on
the validation split: the numbers of the paper's Fig. 4. Keys: those of probe, attack and
validation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from raymi.commands.command_line import Command
from raymi.commands.option_types import known
from raymi.config import Config
from raymi.fields import NEEDED, Accepts, Section
from raymi.local_paths import local_path
from raymi.overrides import examine, nest, overlay
from raymi.runs.events import MODELS
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import find_run

SECTIONS = ("probe.", "attack.", "validation.", "data.root", "data.download")


class ProbeOptions(Section):
    """Options of `python -m raymi.probe`."""

    run: Annotated[str, NEEDED] = ""
    """Name or folder of a finished run."""
    model: Annotated[str, known("model", MODELS), Accepts(" | ".join(MODELS), "NAME")] = "best"
    """Name of a model of the run."""


class ProbeRequest(NamedTuple):
    """Configuration, the run, and the name of its model."""

    config: Config
    folder: RunFolder
    which: str


def requested(words: Sequence[str]) -> ProbeRequest:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    line = COMMAND.parse(words)
    line.refuse()
    which, settings = line.options.model, dict(line.settings)
    out = settings.pop("out", None)
    folder = find_run(line.options.run, local_path(out, "out") if out else None)
    config, problems = examine(overlay(folder.read_config().model_dump(), nest(settings)))
    if config.probe.steps == 0:
        problems.append("probe.steps must be at least 1, got 0: the run has no probes")
    if not os.access(folder.path, os.W_OK | os.X_OK):
        problems.append(f"no permission to write into {folder.path}: the estimates go there")
    if not folder.weights(which).is_file():
        problems.append(
            f"the run {folder.name} has no model {which} yet: let it finish, or try last"
        )
    line.refuse(*problems)
    return ProbeRequest(config, folder, which)


COMMAND: Command[ProbeOptions] = Command(
    "probe",
    ProbeOptions,
    requested,
    "raymi.commands.probe.command:probe_command",
    takes=lambda key: key == "out" or key.startswith(SECTIONS),
    refusal=lambda key: (
        f"{key} belongs to the run and cannot change: give keys of {', '.join(SECTIONS)}"
    ),
)
