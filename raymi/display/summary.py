"""The table that closes a run: what came out, and where it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from raymi.config import Config
from raymi.engine.run_folder import RunFolder

Event = dict[str, Any]


def wilson_interval(accuracy: float, num: int, z: float = 1.959964) -> tuple[float, float]:
    """95% Wilson score interval of a fraction measured on `num` samples.

    Source: Wilson 1927; Agresti and Coull 1998, Eq. 2.
    """
    centre = (accuracy + z * z / (2 * num)) / (1 + z * z / num)
    spread = accuracy * (1 - accuracy) / num + z * z / (4 * num * num)
    half = z * math.sqrt(spread) / (1 + z * z / num)
    return max(0.0, centre - half), min(1.0, centre + half)


def print_summary(
    console: Console,
    config: Config,
    folder: RunFolder,
    evaluations: Mapping[str, Event],
    places: Mapping[str, str],
) -> None:
    """Prints accuracies of the best and the last model on the test set, and where things are.

    Args: evaluations, the events called "best" and "last"; places, from a label to a path or
        command.
    """
    first = next(iter(evaluations.values()))
    attack = first["attack"]
    norm = {"linf": "L_inf", "l2": "L2"}[attack["norm"]]
    table = Table(
        title=f"{folder.name}: {config.data.name}, {first['num']} test images, "
        f"{norm} eps {_eps(attack['eps'])}",
        title_justify="left",
    )
    table.add_column("model")
    table.add_column("epoch", justify="right")
    table.add_column("clean (95% interval)", justify="right")
    table.add_column(f"PGD-{attack['steps']} (95% interval)", justify="right")
    for which in ("best", "last"):
        event = evaluations[which]
        table.add_row(
            which,
            str(event["of_epoch"]),
            _with_interval(event["clean"], event["num"]),
            _with_interval(event["robust"], event["num"]),
        )
    console.print(table)
    width = max(map(len, places))
    for label, place in places.items():
        console.print(f"{label:<{width}}  {place}", highlight=False, soft_wrap=True)


def _with_interval(accuracy: float, num: int) -> str:
    low, high = wilson_interval(accuracy, num)
    return f"{100 * accuracy:.1f}% ({100 * low:.1f}-{100 * high:.1f})"


def _eps(eps: float) -> str:
    pixels = eps * 255
    return f"{round(pixels)}/255" if abs(pixels - round(pixels)) < 1e-6 else f"{eps:g}"
