"""Final table of a run: its results and the paths of its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from raymi.config import Config
from raymi.formatting import number_text, threat_text
from raymi.runs.events import MODELS
from raymi.runs.run_folder import RunFolder
from raymi.statistics import with_interval
from raymi.terminal.print_line import print_line, table_of

Event = Mapping[str, Any]


def result_table(evaluations: Mapping[str, Event]) -> list[tuple[str, ...]]:
    """Returns accuracies on the test set as rows of text, the first one the header.

    Args:
        evaluations: evaluation events by model: "best" and "last", and with averaged weights
            "best-averaged" and "last-averaged"; of these four, the chosen one is marked.
    """
    attack = next(iter(evaluations.values()))["attack"]
    rows: list[tuple[str, ...]] = [
        ("model", "epoch", "clean (95% interval)", f"PGD-{attack['steps']} (95% interval)")
    ]
    rows += [
        (
            f"{which} (chosen)" if len(evaluations) > 2 and event["chosen"] else which,
            str(event["of_epoch"]),
            number_text(with_interval(event["clean"], event["num"])),
            number_text(with_interval(event["robust"], event["num"])),
        )
        for which in sorted(MODELS)  # averaged ones after those as trained
        if (event := evaluations.get(which))
    ]
    return rows


def result_title(config: Config, evaluations: Mapping[str, Event]) -> str:
    """Returns data set, number of images and threat model as text."""
    event = next(iter(evaluations.values()))
    threat = threat_text(event["attack"]["norm"], event["attack"]["eps"])
    return f"{config.data.name}, {event['num']} test images, {threat}"


def print_summary(
    console: Console,
    config: Config,
    folder: RunFolder,
    evaluations: Mapping[str, Event],
    places: Mapping[str, str],
) -> None:
    """Prints accuracies of the best and the last model on the test set, and paths.

    Args:
        console: where it is printed.
        config: configuration of the run.
        folder: folder of the run.
        evaluations: evaluation events by model.
        places: paths and commands by label.
    """
    print_line(console, f"{folder.name}: {result_title(config, evaluations)}")
    console.print(table_of(result_table(evaluations)))
    width = max(map(len, places))
    for label, place in places.items():
        print_line(console, f"{label:<{width}}  {place}")
