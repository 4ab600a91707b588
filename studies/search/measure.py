"""`python -m studies.search [OUT] [seeds=0..4]`: compares TPE with random search.

TPE with ASHA is the default of `raymi.tune`. Measured are trial-epochs until it finds an equally
good configuration.

For each seed both searches draw from the same space on digits and spend the same number of
trial-epochs. Random search trains each trial to the end; TPE starts trials, and ASHA stops them,
until the budget is spent. The two searches draw independently; all trials train with one seed.
Results go to OUT/search.json and OUT/search.md. The two searches of a seed run side by side, in a
process of one thread each; seeds that OUT already has are not measured again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from raymi.benchmarks.processes import run_processes
from raymi.benchmarks.section import MeasurementFailed
from raymi.commands.cli import EXIT_FAILED, run_command
from raymi.commands.option_types import Seeds, writable_folder
from raymi.errors import UserError
from raymi.fields import Section
from raymi.files import save, save_json
from raymi.formatting import markdown_table
from raymi.hardware import processor_name
from raymi.signals import ended_by_sigterm
from raymi.terminal.print_line import print_line
from studies.search.curves import Comparison, Found, compare, median_share
from studies.search.one_search import Trained, timed_search
from studies.search.setting import COMMAND, RANDOM, SEARCHES, SETTING, TPE, Setting
from studies.words import read_words

OUT = Path(__file__).with_name("results")
AIM = 0.5
"""Upper limit of the share of the budget until TPE+ASHA is as good, in the median over seeds."""


class SearchOptions(Section):
    """Options of the study."""

    seeds: Seeds = (0, 1, 2, 3, 4)
    """Seeds of the searches."""


Searches = dict[str, dict[str, Any]]
"""Seed, as text -> search -> its trials and its seconds."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_measure, argv)


def _measure(words: list[str]) -> int:
    console = Console(highlight=False)
    if {"--help", "-h"} & set(words):
        print_line(console, __doc__ or "")
        return 0
    options, place = read_words(words, SearchOptions)
    try:
        out = writable_folder(place or OUT)
    except UserError as error:
        raise UserError(f"OUT: {error}") from None
    try:
        with ended_by_sigterm():
            print_line(
                console,
                measure(SETTING, options.seeds, out, f"{COMMAND} {shlex.join(words)}".strip()),
            )
    except MeasurementFailed as failure:
        print_line(console, f"a search failed: {failure}")
        return EXIT_FAILED
    return 0


def measure(setting: Setting, seeds: Sequence[int], out: Path, command: str) -> str:
    """Runs the searches of all seeds that a folder does not have yet.

    Returns:
        The results in Markdown, as written to the folder.

    Raises:
        UserError: the folder has searches of another setting, machine or versions.
        MeasurementFailed: a process ended without a result.
        StorageError: nothing can be written.
    """
    about = {
        "command": command,
        "machine": processor_name(torch.device("cpu")),
        "versions": {name: version(name) for name in ("raymi", "optuna", "torch")},
        "setting": setting.model_dump(mode="json"),
    }
    file, searches = out / "search.json", Searches()
    if file.exists():
        saved = json.loads(file.read_text())
        for key in ("setting", "versions", "machine"):
            if saved[key] != about[key]:
                raise UserError(
                    f"{file} has searches with other values of {key}, which are not mixed: give "
                    "another folder, or remove it"
                )
        about["command"], searches = saved["command"], saved["searches"]
    for seed in map(str, seeds):
        if seed not in searches:
            searches[seed] = _search(setting, int(seed))
        _write(setting, searches, out, about)
    return (out / "search.md").read_text()


def _search(setting: Setting, seed: int) -> dict[str, Any]:
    """Runs both searches of a seed, side by side."""
    arguments = [
        (setting.definition(name, seed), setting.budget, setting.training_seed) for name in SEARCHES
    ]
    results = run_processes(timed_search, arguments, connected=False)
    return dict(zip(SEARCHES, results, strict=True))


def _write(setting: Setting, searches: Searches, out: Path, about: dict[str, Any]) -> None:
    def compared(reference: str, other: str) -> Comparison:
        trials = _trials(searches[reference][RANDOM]), _trials(searches[other][TPE])
        return compare(*trials, setting.budget)

    by_seed = {seed: compared(seed, seed) for seed in searches}
    pairs = [compared(one, other) for one in searches for other in searches]
    content = {
        **about,
        "budget": setting.budget,
        "median_share": median_share(by_seed.values()),
        "pairs": {
            "median_share": median_share(pairs),
            "num": len(pairs),
            "as_aimed": sum(one.share is not None and one.share < AIM for one in pairs),
        },
        "seconds": sum(max(one["seconds"] for one in both.values()) for both in searches.values()),
        "seeds": {seed: asdict(comparison) for seed, comparison in by_seed.items()},
        "searches": searches,
    }
    save_json(out / "search.json", content)
    save(out / "search.md", _markdown(setting, by_seed, content).encode())


def _trials(search: dict[str, Any]) -> list[Trained]:
    return [Trained(**{**one, "robust": tuple(one["robust"])}) for one in search["trials"]]


def _markdown(setting: Setting, compared: dict[str, Comparison], content: dict[str, Any]) -> str:
    """Returns the results in Markdown."""
    rows = [
        [
            "seed",
            *(f"best of {RANDOM}", "found after"),
            *(f"best of {TPE}", "found after"),
            *("as good after", "share of the budget"),
            f"trials of {TPE}, to the end",
        ]
    ]
    for seed, one in compared.items():
        trials = _trials(content["searches"][seed][TPE])
        ended = sum(trial.ended == "finished" for trial in trials)
        found = (*_cells(one.reference), *_cells(one.other))
        as_good = "never" if one.as_good is None else str(one.as_good)
        rows.append([seed, *found, as_good, _share(one.share), f"{len(trials)}, {ended}"])
    share = content["median_share"]
    verdict = "holds" if share is not None and share < AIM else "does not hold"
    pairs = content["pairs"]
    space = ", ".join(
        f"{name} {kind}={values}"
        for name, parameter in setting.space.parameters.items()
        for kind, values in parameter.model_dump(exclude_defaults=True).items()
    )
    settings = " ".join(f"{key}={value}" for key, value in setting.settings.items())
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    return (
        f"# {TPE} against {RANDOM} on digits\n\n{markdown_table(rows)}\n"
        f"Median share of the budget after which {TPE} was as good as the best of {RANDOM}: "
        f"**{_share(share)}**. That it is less than {AIM} {verdict}. As all searches draw "
        "independently, each of one kind can be compared with each of the other: of these "
        f"{pairs['num']} pairs the median is {_share(pairs['median_share'])}, and "
        f"{pairs['as_aimed']} are below {AIM}.\n\n"
        f"Robust accuracy on validation; after how many of {setting.budget} trial-epochs, which "
        f"both searches have. {RANDOM.capitalize()}: {setting.trials} trials, all to their end. "
        "A configuration is found when its trial reaches its last epoch. All trials train with "
        f"seed {setting.training_seed}. The setting was chosen with other search seeds.\n\n"
        f"Space: {space}. recipe={setting.recipe} {settings}\n\n"
        f"`{content['command']}`: {content['seconds']:.0f} seconds, two searches at a time; "
        f"{content['machine']}; {versions}\n"
    )


def _cells(found: Found | None) -> list[str]:
    return ["-", "-"] if found is None else [f"{found.robust:.3f}", str(found.spent)]


def _share(share: float | None) -> str:
    return "never" if share is None else f"{share:.2f}"
