"""What a report has to show of some runs: pictures in sections, and only of one question in one
picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from raymi.evaluation.model_source import plain_name
from raymi.reporting.curves import learning_picture, together_picture
from raymi.reporting.history import History
from raymi.reporting.information import probe_picture, training_picture
from raymi.reporting.look import Picture, threat_text
from raymi.reporting.measured import Measured
from raymi.reporting.numbers import Entry, method_name
from raymi.reporting.robustness import MOST_RUNS, class_picture, radius_picture
from raymi.reporting.samples import samples_picture
from raymi.reporting.table import Compared
from raymi.runs.record import CLASSIFIER

_PROBE = "python -m raymi.probe run=RUN"

Of = TypeVar("Of")


@dataclass(frozen=True)
class Reported:
    """A run in a report: what its folder says, accuracies of its chosen model from wherever they
    were measured, what the report measured itself (None: nothing), and lines about what is
    missing."""

    history: History
    entries: Sequence[Entry] = ()
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    @property
    def as_row(self) -> Compared:
        """The run in tables."""
        config = self.history.config
        name = self.history.name
        if self.history.chosen != "best":
            name += f" ({self.history.chosen})"
        return Compared(name, method_name(config), config.seed, self.entries)

    @property
    def facts(self) -> dict[str, str]:
        """What a reader needs to know of the run before any number, by what it is called."""
        history, config = self.history, self.history.config
        start, about = history.start, history.about
        made = history.phases.get(CLASSIFIER, ())
        versions = [
            f"{name} {version}"
            for name, key in (("raymi", "version"), ("torch", "torch"))
            if (version := start.get(key) or about.get(key))
        ]
        commit = str(about.get("git_commit", ""))[:10]
        changed = " with changes" if about.get("git_dirty") == "true" else ""
        best = history.best_epoch(history.chosen)
        return {
            "method": method_name(config),
            "recipe": str(about.get("recipe", "-")),
            "data": config.data.name,
            "model": config.model.name,
            "threat": threat_text(config.attack.norm, config.attack.eps),
            "seed": str(config.seed),
            "epochs": f"{made[-1].number if made else 0} of {config.optim.epochs}"
            + (f", {history.chosen}: {best}" if best is not None else ""),
            "state": "finished" if history.finished else "not finished",
            "workers": f"{start.get('workers', '-')} on {start.get('device', '-')}",
            "versions": ", ".join(versions) + (f", commit {commit}{changed}" if commit else ""),
        }


@dataclass(frozen=True)
class Section:
    """A part of a report: heading, what is to be known before its pictures, and these."""

    name: str
    heading: str
    introduction: str
    pictures: tuple[Picture, ...]


def sections(runs: Sequence[Reported]) -> list[Section]:
    """All pictures of some runs, in the order in which they are read; without empty sections."""
    histories = [run.history for run in runs]
    measured = [(run.as_row.run, run.measured) for run in runs if run.measured is not None]
    parts = (
        Section(
            "training",
            "Learning and robustness curves",
            "Validation images are held out from training; they alone choose the best epoch.",
            _kept(
                [together_picture(group) for group in _groups(histories, _validation)]
                + [_of_run(learning_picture, one) for one in histories]
            ),
        ),
        Section(
            "information",
            "Mutual information of natural and adversarial samples",
            "I_N is what an output tells about the natural image, I_A what it tells about the "
            "adversarial noise, over all validation samples." + _without_probes(histories),
            _kept(
                [probe_picture(group) for group in _groups(histories, _probing)]
                + [_of_run(training_picture, one) for one in histories]
            ),
        ),
        Section(
            "radius",
            "Accuracy against the radius",
            "Measured by this report, on test images; nothing was chosen by it.",
            _kept(
                radius_picture(dict(group))
                for group in _groups(measured, lambda one: _images(one[1]))
            ),
        ),
        Section(
            "classes",
            "Accuracy by class",
            "Classes have few images each: mind the intervals.",
            _kept(
                class_picture(dict(part))
                for group in _groups(measured, lambda one: (*_images(one[1]), one[1].threat.eps))
                for part in _parts(group, MOST_RUNS)
            ),
        ),
        Section(
            "samples",
            "Natural and adversarial images",
            "",
            _kept(
                None if found is None else _renamed(found, f"{found.name}-{name}")
                for name, one in measured
                for found in [samples_picture(name, one)]
            ),
        ),
    )
    return _uniquely_named([part for part in parts if part.pictures])


def _without_probes(histories: Sequence[History]) -> str:
    names = ", ".join(one.name for one in histories if one.probe is None and one.finished)
    if not names:
        return ""
    return f" No fresh probes, which the paper's Fig. 4 needs, of {names}: {_PROBE} makes them."


def _kept(pictures: Iterable[Picture | None]) -> tuple[Picture, ...]:
    return tuple(picture for picture in pictures if picture is not None)


def _of_run(draw: Callable[[History], Picture | None], history: History) -> Picture | None:
    picture = draw(history)
    return None if picture is None else _renamed(picture, f"{picture.name}-{history.name}")


def _renamed(picture: Picture, name: str) -> Picture:
    return replace(picture, name=plain_name(name))


def _groups(things: Sequence[Of], key: Callable[[Of], Hashable]) -> Iterator[list[Of]]:
    """Those with the same key together, in the order of the first of each."""
    groups: dict[Hashable, list[Of]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    yield from groups.values()


def _parts(things: Sequence[Of], most: int) -> Iterator[Sequence[Of]]:
    """As few parts as there must be of at most so many things, about equally large."""
    size = math.ceil(len(things) / math.ceil(len(things) / most))
    for first in range(0, len(things), size):
        yield things[first : first + size]


def _digests(history: History) -> dict[str, Any]:
    return dict(history.start.get("data", {}).get("digests", {}))


def _validation(history: History) -> Hashable:
    """What runs must share for validation accuracies in one picture."""
    attack, validation = history.config.attack, history.config.validation
    return (
        _digests(history).get("val", history.name),
        attack.norm,
        attack.eps,
        validation.steps,
        validation.max_samples,
    )


def _probing(history: History) -> Hashable:
    """What runs must share for probes in one picture."""
    if history.probe is None:
        return None
    digests = _digests(history)
    return (history.probe.settings, digests.get("train"), digests.get("val"))


def _images(measured: Measured) -> tuple[Hashable, ...]:
    return (measured.digest, measured.threat.norm, measured.steps)


def _uniquely_named(parts: Sequence[Section]) -> list[Section]:
    """No two pictures share a file, nor one that some systems hold for the same."""
    taken: set[str] = set()
    named = []
    for part in parts:
        pictures = []
        for picture in part.pictures:
            name, number = picture.name, 2
            while name.lower() in taken:
                name, number = f"{picture.name}-{number}", number + 1
            taken.add(name.lower())
            pictures.append(replace(picture, name=name))
        named.append(replace(part, pictures=tuple(pictures)))
    return named
