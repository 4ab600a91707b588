"""Unit of the study: trains an arm with a seed, chooses an epoch, attacks test images.

    python -m studies.does_it_help.unit STAGE ARM SEED OUT RESULTS

Continues where it was: the run from its checkpoint, attacks from their saved outcomes.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from raymi.api.robust_accuracy import RobustAccuracy, robust_accuracy
from raymi.data.image_set import ImageSet
from raymi.engine.validation import load_data
from raymi.evaluation.callback import EvaluationCallback
from raymi.files import save_json
from raymi.hardware import processor_name
from raymi.models import build_model
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from raymi.standalone import main as standalone
from studies.does_it_help.setting import (
    AUTOATTACK,
    AUTOATTACK_IMAGES,
    EPS,
    FAST,
    PGD,
    STAGES,
    TEST_IMAGES,
    VALIDATION_IMAGES,
    Unit,
)


def result_file(results: Path, unit: Unit) -> Path:
    """Returns the file of a unit's result."""
    return results / f"{unit.name}.json"


def train(unit: Unit, out: Path, *words: str) -> RunFolder:
    """Trains a unit, or continues its run; returns its folder.

    Args:
        unit: what to train.
        out: folder of runs.
        words: further settings.

    Raises:
        SystemExit: training ended early, with its exit code.
    """
    epochs = STAGES[unit.stage].candidates
    fixed = (
        f"name={unit.name}", f"out={out / 'runs'}", "tracking.enabled=false", "use_gpu=false",
        f"checkpoint.keep={STAGES[unit.stage].epochs}", "checkpoint.every=2",
    )  # fmt: skip
    assert all(epoch % 2 == 0 for epoch in epochs)
    folder = RunFolder(out / "runs" / unit.name)
    if read_record(folder).finished:
        return folder
    if code := standalone([*unit.words(), *fixed, *words]):
        raise SystemExit(code)
    return folder


def classifiers(folder: RunFolder, epochs: tuple[int, ...]) -> dict[int, nn.Module]:
    """Returns the classifier after each epoch, averaged if the run averages, in eval mode."""
    config = folder.read_config()
    splits = load_data(config)
    batches = -(-len(splits.train.labels) // config.optim.batch_size)
    models = dict[int, nn.Module]()
    for epoch in epochs:
        (path,) = folder.checkpoints.glob(f"step-{epoch * batches:08d}-*.pt")
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = build_model(
            config.model.name,
            num_classes=splits.num_classes,
            image_size=splits.image_size,
            mean=splits.mean,
            std=splits.std,
            width=config.model.width,
            depth=config.model.depth,
            activation=config.model.activation,
        )
        average = state["average"]
        model.load_state_dict(state["model"] if average is None else average["model"])
        models[epoch] = model.eval().to(memory_format=torch.channels_last)
    return models


def attack(
    model: nn.Module, images: ImageSet, num: int, attacks: str, outcomes: Path
) -> RobustAccuracy:
    """Attacks the first images of a split, or continues to."""
    data = TensorDataset(images.images[:num], images.labels[:num])
    return robust_accuracy(
        model,
        data,
        eps=EPS,
        suite=attacks,
        checks=0,
        results=outcomes,
        callback=EvaluationCallback(),
    )


def measure(unit: Unit, out: Path, results: Path, *words: str) -> dict[str, Any]:
    """Trains and attacks a unit; saves and returns its result.

    Args:
        unit: what to measure.
        out: folder of runs and outcomes.
        results: folder of results.
        words: further settings.
    """
    folder = train(unit, out, *words)
    config = folder.read_config()
    splits, record = load_data(config), read_record(folder)
    stage = STAGES[unit.stage]
    models = classifiers(folder, stage.candidates)
    taken = {"train": sum(event["train_seconds"] for event in record.of_kind("epoch"))}

    start, outcomes = time.monotonic(), out / "outcomes" / unit.name
    validation = {
        epoch: attack(model, splits.val, VALIDATION_IMAGES, FAST, outcomes / f"val{epoch}")
        for epoch, model in models.items()
    }
    chosen = max(validation, key=lambda epoch: (validation[epoch].accuracy, -epoch))
    taken["select"] = time.monotonic() - start

    start, test = time.monotonic(), {}
    for which, epoch in {"chosen": chosen, "last": stage.epochs}.items():
        place = outcomes / f"test{epoch}"
        found = attack(models[epoch], splits.test, TEST_IMAGES, f"{PGD},{FAST}", place)
        test[which] = {"epoch": epoch, **found.accuracies}
    taken["test"] = time.monotonic() - start
    if unit.seed == 0:
        start = time.monotonic()
        attacks, place = f"{AUTOATTACK},{FAST}", outcomes / "autoattack"
        found = attack(models[chosen], splits.test, AUTOATTACK_IMAGES, attacks, place)
        test["autoattack"] = {"epoch": chosen, **found.accuracies}
        taken["autoattack"] = time.monotonic() - start
    result = {
        **unit._asdict(),
        "settings": unit.words(),
        "validation": {epoch: found.accuracies for epoch, found in validation.items()},
        "test": test,
        "curve": _curve(record),
        "mi": _last_mi(record),
        "seconds": {name: round(value, 1) for name, value in taken.items()},
        "machine": processor_name(torch.device("cpu")),
        "versions": {name: version(name) for name in ("raymi", "torch")},
    }
    save_json(result_file(results, unit), result, "outcomes are saved")
    return result


def _curve(record: Any) -> list[dict[str, float]]:
    """Returns validation accuracies under the attack of training, by epoch."""
    return [
        {"epoch": epoch.number, **epoch.val}
        for epochs in record.phases.values()
        for epoch in epochs
        if epoch.val
    ]


def _last_mi(record: Any) -> dict[str, float]:
    """Returns the mean MI metrics of the last epoch's training batches."""
    last = [epochs[-1] for epochs in record.phases.values()][-1]
    return {name: value for name, value in last.train.items() if name.startswith("mi/")}


def main(argv: list[str]) -> int:
    """Measures the unit of the command line."""
    stage, arm, seed, out, results = argv
    torch.set_num_threads(1)
    measure(Unit(stage, arm, int(seed)), Path(out), Path(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
