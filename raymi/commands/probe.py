"""Command `raymi.probe`: estimates mutual information in a finished classifier's outputs.

Trains new estimators with a fixed budget on the frozen classifier of a run, also of one that
trained without MI, and prints natural and adversarial MI of its natural and adversarial outputs on
the validation split: the numbers of the paper's Fig. 4.

`run` is a run's name or folder, `model` one of its models (best; last; best-averaged;
last-averaged). Other keys: those of probe, attack and validation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from raymi.collectives import Collectives
from raymi.commands.cli import print_help, wants_help
from raymi.commands.command_line import split_command_line
from raymi.commands.find_model import find_model_source
from raymi.config import Config
from raymi.engine.context import StopReason
from raymi.engine.pgd_evaluation import Heartbeat
from raymi.engine.validation import load_data, probe_model
from raymi.errors import UserError, did_you_mean
from raymi.evaluation.model_source import check_classifier
from raymi.files import save_json
from raymi.local_paths import local_path
from raymi.overrides import examine, nest, overlay
from raymi.runs.events import MODELS
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import find_run
from raymi.terminal.console import Table, Terminal, progress_bar
from raymi.terminal.print_line import print_line

USAGE = "python -m raymi.probe run=RUN [out=FOLDER] [model=best] [key=value ...] [--help]"
SECTIONS = ("probe.", "attack.", "validation.", "data.root", "data.download")


def probe_command(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {}, takes)
        return 0
    config, folder, which = parse_options(words)
    with progress_bar(console) as bar:
        task = bar.add_task(f"probing {which} of {folder.name}")
        estimates = probe(
            config, folder, which, lambda done, total: bar.update(task, completed=done, total=total)
        )
    console.print(_table(estimates, f"{folder.name}, {which}: MI in nats on the validation split"))
    most = math.log(config.probe.batch - 1)
    path = _results(folder, which)
    print_line(console, f"the estimators resolve at most about {most:.2f} nats; saved in {path}")
    return 0


def takes(key: str) -> bool:
    """Returns whether a probe takes a key of `Config`."""
    return key == "out" or key.startswith(SECTIONS)


def parse_options(words: Sequence[str]) -> tuple[Config, RunFolder, str]:
    """Parses a command line; returns the configuration, the run, and the name of its model.

    Raises:
        UserError: with a line for each problem.
    """
    options, settings, problems = split_command_line(
        words,
        {"run": (), "model": MODELS},
        takes,
        lambda key: (
            f"{key} belongs to the run and cannot change: give keys of {', '.join(SECTIONS)}"
        ),
    )
    which = options.get("model", "best")
    if which not in MODELS:
        problems.append(f"unknown model {which!r}: {did_you_mean(which, MODELS)}")
    out = settings.pop("out", None)
    if "run" not in options:
        problems.append("run=RUN is needed: the name or the folder of a finished run")
    if problems:
        raise UserError("\n".join(problems))
    folder = find_run(options["run"], local_path(out, "out") if out else None)
    config, problems = examine(overlay(folder.read_config().model_dump(), nest(settings)))
    if config.probe.steps == 0:
        problems.append("probe.steps must be at least 1, got 0: the run has no probes")
    if not os.access(folder.path, os.W_OK | os.X_OK):
        problems.append(f"no permission to write into {folder.path}: the estimates go there")
    if not folder.weights(which).is_file():
        problems.append(
            f"the run {folder.name} has no model {which} yet: let it finish, or try last"
        )
    if problems:
        raise UserError("\n".join(problems))
    return config, folder, which


def probe(config: Config, folder: RunFolder, which: str, heartbeat: Heartbeat) -> dict[str, float]:
    """Estimates mutual information and saves it in the run's folder.

    Args:
        config: of the run, with the settings of the probe.
        folder: of the run.
        which: one of the run's models.
        heartbeat: called with the number of steps done and of all steps.

    Returns:
        Estimates in nats by name.
    """
    splits = load_data(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = find_model_source(str(folder.path), config, which=which).source
    model = source.load()
    check_classifier(source.name, model, splits.num_classes, splits.image_size)
    estimates = probe_model(
        config, splits, model.to(device), Collectives(), device, heartbeat=heartbeat
    )
    assert not isinstance(estimates, StopReason), "no heartbeat of this command returns a reason"
    settings = {
        "model": which,
        "probe": config.probe.model_dump(),
        "attack": str(config.attack),
        "validation": config.validation.model_dump(),
    }
    save_json(_results(folder, which), {**settings, "estimates": estimates})
    return estimates


def _results(folder: RunFolder, which: str) -> Path:
    return folder.path / f"probe-{which}.json"


def _table(estimates: Mapping[str, float], title: str) -> Table:
    table = Table(title=title)
    table.add_column("samples")
    for heading in ("I_N(h(x))", "I_N(h(x_adv))", "I_A(h(x))", "I_A(h(x_adv))"):
        table.add_column(heading, justify="right")
    for label, suffix in (("all", ""), ("selected (Eq. 6)", "_selected")):
        names = [
            f"mi/{kind}_of_{of}{suffix}"
            for kind in ("natural", "adversarial")
            for of in ("natural", "adversarial")
        ]
        values = [f"{estimates[name]:.3f}" if name in estimates else "-" for name in names]
        table.add_row(label, *values)
    return table
