"""A folder with a finished run, its evaluation and a finished sweep, made by the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TINY = (
    "data.limit=200", "data.flip=false", "data.crop_padding=1", "model.width=0.5", "attack.steps=2",
    "mi.hidden=16", "mi.base_width=4", "mi.depth=1", "optim.epochs=2", "optim.batch_size=44",
    "validation.steps=2", "evaluation.steps=2", "evaluation.max_samples=40", "probe.steps=0",
)  # fmt: skip
"""Settings of a quickstart that trains in a second."""

RUN = ("name=a", "scaling.workers=1", *TINY)
EVALUATION = (
    "model=a", "attacks=pgd-4,fgsm", "samples=40", "evaluation.block=20", "checks=20", "workers=1",
)  # fmt: skip
SWEEP = (
    "space=smoke", "name=s", "tune.trials=2", "tune.search=random", "tune.scheduler=none",
    "tune.finalists=1", "tune.samples=12", "tune.test_suite=quick", "data.limit=100",
    "data.image_size=8", "attack.steps=2", "validation.steps=2", "epochs=2", "evaluation.steps=2",
)  # fmt: skip


def make_home(folder: Path) -> None:
    """Trains, evaluates and sweeps in an empty folder, tracked in MLflow."""
    folder.mkdir(parents=True)
    for command, words in (("train", RUN), ("evaluate", EVALUATION), ("tune", SWEEP)):
        subprocess.run(
            [sys.executable, "-m", f"raymi.{command}", *words],
            cwd=folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
