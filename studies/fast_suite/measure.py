"""`python -m studies.fast_suite [OUT] [seeds=0]`: compares suite=fast with AutoAttack.

Small robust classifiers are trained by `raymi.standalone` and attacked by `raymi.evaluate`, both on
CPU. Blocks of the two suites alternate, so that other load on the machine slows both. Results go
to OUT/fast_suite.json and OUT/fast_suite.md; runs and outcomes to OUT/runs and OUT/evaluations,
from which the same command continues. `$RAYMI_DATA` holds the images of CIFAR-10 and of the first
ten classes of Tiny-ImageNet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from raymi.commands.cli import EXIT_FAILED, run_command
from raymi.commands.option_types import Seeds, writable_folder
from raymi.fields import Section
from raymi.files import save, save_json
from raymi.formatting import markdown_table
from raymi.hardware import processor_name
from studies.words import read_words

OUT = Path(__file__).with_name("results")
SUITES = ("fast", "autoattack")
MOST_POINTS, MOST_TIME = 0.5, 1 / 3
"""The aim: difference of robust accuracy in points, and share of AutoAttack's time."""

SMALL = (
    "image_size=16", "model.name=small-cnn", "model.width=0.5", "model.depth=4", "attack.steps=3",
    "lr=0.1",
)  # fmt: skip
CIFAR = (
    "data.name=cifar10", "data.limit=2000", *SMALL, "eps=8/255", "attack.alpha=4/255",
    "batch_size=64", "epochs=5",
)  # fmt: skip
TINY = (
    "data.name=tiny-imagenet", *SMALL, "eps=4/255", "attack.alpha=2/255", "batch_size=32",
    "epochs=8",
)  # fmt: skip
CLASSIFIERS = {
    "digits-at": ("recipe=quickstart-at", *SMALL, "epochs=6"),
    "digits-namid": ("recipe=quickstart", *SMALL, "epochs=6"),
    "cifar10-trades": ("recipe=cifar10-cpu-trades", *CIFAR),
    "tiny-imagenet-mart": ("recipe=cifar10-cpu-mart", *TINY),
}
"""Settings of each robust classifier; everything else is its recipe's."""
NUM_IMAGES, BLOCK = 200, 100


class SuiteOptions(Section):
    """Options of the study."""

    seeds: Seeds = (0,)
    """Seeds of the classifiers."""


class Pair(NamedTuple):
    """Accuracies under both suites, fractions, and their seconds of work on the same images."""

    clean: float
    fast: float
    autoattack: float
    fast_seconds: float
    autoattack_seconds: float

    @property
    def points(self) -> float:
        """Robust accuracy under the fast suite minus AutoAttack's, in points."""
        return 100 * (self.fast - self.autoattack)

    @property
    def time(self) -> float:
        """Time of the fast suite as a share of AutoAttack's."""
        return self.fast_seconds / self.autoattack_seconds


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_measure, argv)


def _measure(words: list[str]) -> int:
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    options, place = read_words(words, SuiteOptions)
    out = writable_folder(place or OUT)
    pairs: dict[str, Pair] = {}
    for seed in options.seeds:
        for name, settings in CLASSIFIERS.items():
            try:
                pairs[f"{name}-{seed}"] = measure(
                    out, f"{name}-{seed}", (*settings, f"seed={seed}")
                )
            except subprocess.CalledProcessError as failure:
                print(f"{name}: {' '.join(failure.cmd)} ended with {failure.returncode}")
                return EXIT_FAILED
    write(out, pairs)
    print((out / "fast_suite.md").read_text())
    return 0


def measure(out: Path, name: str, settings: Sequence[str], num: int = NUM_IMAGES) -> Pair:
    """Trains a classifier where its run is missing, and attacks it with both suites.

    Args:
        out: folder of runs and outcomes.
        name: of the run.
        settings: words of `raymi.standalone`.
        num: number of test images.

    Raises:
        CalledProcessError: a command failed.
    """
    report = out / "evaluations" / f"{name}.json"
    out.joinpath("evaluations").mkdir(parents=True, exist_ok=True)
    common = ("tracking.enabled=false", "use_gpu=false")
    run = ("workers=1", f"out={out / 'runs'}", f"name={name}", "evaluation.max_samples=100")
    _raymi("standalone", *settings, *run, *common)
    attack = (
        f"attacks={','.join(SUITES)}",
        f"samples={num}",
        "checks=0",
        "workers=1",
        f"block={BLOCK}",
    )
    place = (f"results={out / 'evaluations'}", f"json={report}")
    _raymi("evaluate", f"model={out / 'runs' / name}", *attack, *place, *common)
    return pair_of(json.loads(report.read_text())["models"][0])


def pair_of(report: Mapping[str, Any]) -> Pair:
    """Returns accuracies and times from the report of an evaluation."""
    results = {result["name"]: result for result in report["results"]}
    return Pair(
        *(results[name]["accuracy"] for name in ("clean", *SUITES)),
        *(sum(one["seconds"] for one in results[name]["attacks"]) for name in SUITES),
    )


def write(out: Path, pairs: Mapping[str, Pair]) -> None:
    """Writes the results as JSON and as a table in Markdown."""
    about = {
        "machine": processor_name(torch.device("cpu")),
        "versions": {name: version(name) for name in ("raymi", "torch", "pyautoattack")},
        "images": NUM_IMAGES,
        "settings": CLASSIFIERS,
        "results": {
            name: {**pair._asdict(), "points": pair.points, "time": pair.time}
            for name, pair in pairs.items()
        },
    }
    save_json(out / "fast_suite.json", about, "all outcomes are saved")
    rows = [("classifier, seed", "clean", "fast", "AutoAttack", "difference", "share of its time")]
    rows += [
        (
            name,
            f"{100 * pair.clean:.1f}%",
            f"{100 * pair.fast:.1f}%",
            f"{100 * pair.autoattack:.1f}%",
            f"{pair.points:+.2f} points",
            f"{pair.time:.2f}",
        )
        for name, pair in pairs.items()
    ]
    met = all(abs(one.points) <= MOST_POINTS and one.time <= MOST_TIME for one in pairs.values())
    aim = f"within {MOST_POINTS} points at {MOST_TIME:.2f} of the time or less"
    text = f"{markdown_table(rows)}\n\n{aim}: {'met' if met else 'not met'}\n"
    save(out / "fast_suite.md", text.encode(), "all outcomes are saved")


def _raymi(command: str, *words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", f"raymi.{command}", *words], check=True, env=environment)
