"""`python -m raymi.probe run=RUN [key=value ...]`: what a finished classifier's outputs tell.

Trains fresh estimators with a fixed budget on the frozen classifier of a run, also of one that
trained without MI, and prints natural and adversarial MI of its natural and adversarial outputs on
the validation split: the numbers of the paper's Fig. 4.

`run` is a run's name or folder, `model` one of its models (best; last; best-averaged;
last-averaged). Of the other keys those of probe, attack and validation may be given.
"""

from __future__ import annotations

import os
import sys

import torch
from rich.console import Console

from raymi.collectives import Collectives
from raymi.commands.cli import print_help, run_command, wants_help
from raymi.config import Config
from raymi.data import Splits
from raymi.engine.validation import load_data, probe_model
from raymi.errors import UserError, did_you_mean
from raymi.files import save_json
from raymi.local_paths import local_path
from raymi.models import build_model
from raymi.overrides import examine, flatten, overlay, split_words
from raymi.runs.events import MODELS
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import find_run
from raymi.terminal.console import Table, Terminal, progress_bar
from raymi.terminal.print_line import print_line
from raymi.weights import read_weights_file

USAGE = "python -m raymi.probe run=RUN [out=FOLDER] [model=best] [key=value ...] [--help]"
SECTIONS = ("probe.", "attack.", "validation.", "data.root", "data.download")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_probe, argv)


def _probe(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {})
        return 0
    parsed = split_words(words, {"run": (), "model": MODELS})
    problems = list(parsed.problems)
    which = parsed.own.get("model", "best")
    if which not in MODELS:
        problems.append(f"unknown model {which!r}: {did_you_mean(which, MODELS)}")
    out = parsed.settings.pop("out", None)
    problems += [
        f"{key} belongs to the run and cannot change: give keys of {', '.join(SECTIONS)}"
        for key in flatten(parsed.settings)
        if not key.startswith(SECTIONS)
    ]
    if "run" not in parsed.own:
        problems.append("run=RUN is needed: the name or the folder of a finished run")
    if problems:
        raise UserError("\n".join(problems))
    folder = find_run(parsed.own["run"], local_path(out, "out") if out else None)
    config, wrong = examine(overlay(folder.read_config().model_dump(), parsed.settings))
    if config.probe.steps == 0:
        wrong.append("probe.steps must be at least 1, got 0: the run was made without probes")
    if not os.access(folder.path, os.W_OK | os.X_OK):
        wrong.append(f"no permission to write into {folder.path}: the estimates are kept there")
    if not folder.weights(which).is_file():
        wrong.append(f"the run {folder.name} has no model {which} yet: let it finish, or try last")
    if wrong:
        raise UserError("\n".join(wrong))
    _run(console, config, folder, which)
    return 0


def _run(console: Console, config: Config, folder: RunFolder, which: str) -> None:
    splits = load_data(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _load(config, folder, which, splits).to(device)
    with progress_bar(console) as bar:
        task = bar.add_task(f"probing {which} of {folder.name}")
        estimates = probe_model(
            config,
            splits,
            model,
            Collectives(),
            device,
            heartbeat=lambda done, total: bar.update(task, completed=done, total=total),
        )
    path = folder.path / f"probe-{which}.json"
    about = {
        "model": which,
        "probe": config.probe.model_dump(),
        "attack": str(config.attack),
        "validation": config.validation.model_dump(),
    }
    console.print(_table(estimates, f"{folder.name}, {which}: MI in nats on the validation split"))
    save_json(path, {**about, "estimates": estimates})
    print_line(console, f"at most about {_most(config):.2f} nats can be seen; kept in {path}")


def _load(config: Config, folder: RunFolder, which: str, splits: Splits) -> torch.nn.Module:
    model = build_model(
        config.model.name,
        num_classes=splits.num_classes,
        image_size=splits.image_size,
        mean=splits.mean,
        std=splits.std,
        width=config.model.width,
        depth=config.model.depth,
    )
    model.load_state_dict(read_weights_file(folder.weights(which)).tensors)
    return model


def _table(estimates: dict[str, float], title: str) -> Table:
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


def _most(config: Config) -> float:
    return float(torch.tensor(config.probe.batch - 1.0).log())


if __name__ == "__main__":
    sys.exit(main())
