"""Sweeps whose trials train for a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_runs import TINY

from raymi.tuning.run_trial import OnReport, TrialResult, in_this_process, run_trial
from raymi.tuning.settings import TuneConfig
from raymi.tuning.space import Space
from raymi.tuning.sweep_folder import Definition, Measurement, Sweep, TrialRun

SPACE = Space(name="lr", description="", parameters={"optim.lr": {"log": (0.01, 0.1)}})
SETTINGS = {k: v for k, v in TINY.items() if k != "optim.lr"}
SETTINGS |= {"optim.epochs": 3, "data.limit": 100}
CPU = torch.device("cpu")
FIRST = TrialRun(0, 0)


def begin(
    path: Path,
    tune: dict[str, Any] | None = None,
    space: Space = SPACE,
    seeds: tuple[int, ...] = (0,),
    **settings: Any,
) -> Sweep:
    """Creates a sweep over the learning rate."""
    definition = Definition(
        id="0",
        command="python -m raymi.tune",
        space=space,
        recipe="quickstart",
        settings=SETTINGS | settings,
        seeds=seeds,
        tune=TuneConfig(**(tune or {})),
    )
    return Sweep.begin(path, definition)


def trained(
    sweep: Sweep,
    run: TrialRun = FIRST,
    values: dict[str, Any] | None = None,
    on_report: OnReport | None = None,
) -> tuple[TrialResult, list[Measurement]]:
    """Trains a run of a trial in this process; returns its result and reported accuracies."""
    reported = []

    def record(metrics):
        val = {key.removeprefix("val/"): value for key, value in metrics.items()}
        reported.append(Measurement.of_epoch(metrics["epoch"], val))

    # an epoch can take less time than the usual interval between two checks of the stop file
    train_run = in_this_process(CPU, sweep.stop_file, on_report or record, poll_seconds=0.0)
    return run_trial(sweep, run, values or {"optim.lr": 0.05}, train_run), reported
