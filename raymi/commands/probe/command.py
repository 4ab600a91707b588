"""Estimates mutual information in a finished classifier's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from raymi.collectives import Collectives
from raymi.commands.find_model import find_model_source
from raymi.commands.probe.options import ProbeRequest
from raymi.config import Config
from raymi.engine.context import StopReason
from raymi.engine.pgd_evaluation import Heartbeat
from raymi.engine.validation import load_data, probe_model
from raymi.evaluation.model_source import check_classifier
from raymi.files import save_json
from raymi.runs.run_folder import RunFolder
from raymi.terminal.console import Table, Terminal, progress_bar
from raymi.terminal.print_line import print_line


def probe_command(request: ProbeRequest) -> int:
    """Runs the command; returns its exit code."""
    config, folder, which = request
    console = Terminal()
    with progress_bar(console) as bar:
        task = bar.add_task(f"probing {which} of {folder.name}")
        estimates = probe(
            config, folder, which, lambda done, total: bar.update(task, completed=done, total=total)
        )
    console.print(_table(estimates, f"{folder.name}, {which}: MI in nats on the validation split"))
    most = math.log(2 * config.probe.batch)
    path = _results(folder, which)
    print_line(
        console,
        "lower bounds in expectation, on images that no estimator was trained or stopped on; with "
        f"shuffled outputs the MI is 0; no estimate exceeds {most:.2f} nats; saved in {path}",
    )
    return 0


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
    table.add_column("outputs")
    for heading in ("I_N(h(x))", "I_N(h(x_adv))", "I_A(h(x))", "I_A(h(x_adv))"):
        table.add_column(heading, justify="right")
    for label, suffix in (("of the classifier", ""), ("shuffled (baseline)", "_shuffled")):
        values = [
            f"{estimates[f'mi/{kind}_of_{of}{suffix}']:.3f}"
            for kind in ("natural", "adversarial")
            for of in ("natural", "adversarial")
        ]
        table.add_row(label, *values)
    return table
