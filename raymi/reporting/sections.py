"""Sections of a report; each picture has comparable runs only."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from raymi.formatting import percent_text, plain_name, threat_text
from raymi.reporting.accuracies import ProtocolAccuracies, method_name
from raymi.reporting.history import History
from raymi.reporting.learning_curves import learning_picture, together_picture
from raymi.reporting.mutual_information import probe_picture, training_picture
from raymi.reporting.robustness_curve import RobustnessCurve
from raymi.reporting.robustness_pictures import MOST_RUNS, class_picture, radius_picture
from raymi.reporting.sample_pictures import samples_picture
from raymi.reporting.style import Picture, run_styles
from raymi.reporting.table import RunAccuracies
from raymi.runs.record import CLASSIFIER

SHORTEST = 3
"""Epochs from which a run has curves; a shorter one has a table."""

_COLUMNS = {
    "loss": ("train", "loss"),
    "clean": ("val", "clean_acc"),
    "robust": ("val", "robust_acc"),
    "natural MI": ("val", "mi/natural_of_natural"),
    "adversarial MI": ("val", "mi/adversarial_of_adversarial"),
}
_PROBE = "python -m raymi.probe run=RUN"

Item = TypeVar("Item")


class TextTable(NamedTuple):
    """Table of text: caption, names of columns, and rows."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ReportedRun:
    """A run in a report.

    Attributes:
        history: of the run.
        accuracies: of its chosen model, measured before.
        curve: measured for this report; None: nothing was attacked.
        notes: lines about missing parts.
    """

    history: History
    accuracies: Sequence[ProtocolAccuracies] = ()
    curve: RobustnessCurve | None = None
    notes: tuple[str, ...] = ()

    @property
    def as_row(self) -> RunAccuracies:
        """The run in tables."""
        config = self.history.config
        name = self.history.name
        if self.history.chosen != "best":
            name += f" ({self.history.chosen})"
        return RunAccuracies(name, method_name(config), config.seed, self.accuracies)

    @property
    def facts(self) -> dict[str, str]:
        """Method, data and provenance by label."""
        history, config = self.history, self.history.config
        start, about = history.start, history.about
        epochs = history.phases.get(CLASSIFIER, ())
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
            "epochs": f"{epochs[-1].number if epochs else 0} of {config.optim.epochs}"
            + (f", {history.chosen}: {best}" if best is not None else ""),
            "state": "finished" if history.finished else "not finished",
            "workers": f"{start.get('workers', '-')} on {start.get('device', '-')}",
            "versions": ", ".join(versions) + (f", commit {commit}{changed}" if commit else ""),
        }


@dataclass(frozen=True)
class Section:
    """Section of a report."""

    name: str
    heading: str
    introduction: str
    pictures: tuple[Picture, ...]
    tables: tuple[TextTable, ...] = ()


def sections(runs: Sequence[ReportedRun]) -> list[Section]:
    """Draws all pictures of some runs, in reading order, without empty sections."""
    histories = [run.history for run in runs]
    long = [one for one in histories if _num_epochs(one) >= SHORTEST]
    methods = {run.history.name: method_name(run.history.config) for run in runs}
    by_run = run_styles(methods)
    styles = {name: by_run[run.history.name] for run in runs for name in _names(run)}
    curves = [(run.as_row.run, run.curve) for run in runs if run.curve is not None]
    parts = (
        Section(
            "training",
            "Learning and robustness curves",
            "Validation images are held out from training; they alone determine the best epoch.",
            _existing(
                [together_picture(group, styles) for group in _groups(long, _validation_key)]
                + [_of_run(learning_picture, one) for one in long]
            ),
            tuple(_epoch_table(one) for one in histories if 0 < _num_epochs(one) < SHORTEST),
        ),
        Section(
            "information",
            "Mutual information of natural and adversarial samples",
            "I_N is the information of an output about the natural image, I_A that about the "
            "adversarial noise, over all validation samples." + _missing_probes(histories),
            _existing(
                [probe_picture(group) for group in _groups(histories, _probe_key)]
                + [_of_run(training_picture, one) for one in long]
            ),
        ),
        Section(
            "radius",
            "Accuracy against the radius",
            "Measured for this report on test images, after all models were chosen.",
            _existing(
                radius_picture(dict(group), styles)
                for group in _groups(curves, lambda item: _images_key(item[1]))
            ),
        ),
        Section(
            "classes",
            "Accuracy by class",
            "Each class has few images: note the intervals.",
            _existing(
                class_picture(dict(part), styles)
                for group in _groups(
                    curves, lambda item: (*_images_key(item[1]), item[1].threat.eps)
                )
                for part in _parts(group, MOST_RUNS)
            ),
        ),
        Section(
            "samples",
            "Natural and adversarial images",
            "",
            _existing(
                _renamed(picture, f"{picture.name}-{name}")
                for name, curve in curves
                if (picture := samples_picture(name, curve)) is not None
            ),
        ),
    )
    return _uniquely_named([part for part in parts if part.pictures or part.tables])


def _names(run: ReportedRun) -> set[str]:
    """Returns the names of a run in pictures."""
    return {run.history.name, run.as_row.run}


def _num_epochs(history: History) -> int:
    """Returns the number of epochs of the longest phase."""
    return max(map(len, history.phases.values()), default=0)


def _epoch_table(history: History) -> TextTable:
    """Returns the epochs of a run that is too short for curves."""
    epochs = [(phase, one) for phase, part in history.phases.items() for one in part]
    columns: dict[str, list[str]] = {}
    for name, (of, key) in _COLUMNS.items():
        values = [getattr(one, of).get(key) for _, one in epochs]
        if any(value is not None for value in values):
            text = percent_text if key.endswith("_acc") else "{:.3f}".format
            columns[name] = ["-" if value is None else text(value) for value in values]
    rows = [
        (phase, str(one.number), *cells)
        for (phase, one), *cells in zip(epochs, *columns.values(), strict=True)
    ]
    return TextTable(
        f"{history.name}: loss on training batches, accuracy and MI (nats) on validation images.",
        ("phase", "epoch", *columns),
        rows,
    )


def _missing_probes(histories: Sequence[History]) -> str:
    names = ", ".join(one.name for one in histories if one.probe is None and one.finished)
    return f" Without fresh probes (Fig. 4 of the paper): {names}; run {_PROBE}." if names else ""


def _existing(pictures: Iterable[Picture | None]) -> tuple[Picture, ...]:
    return tuple(picture for picture in pictures if picture is not None)


def _of_run(draw: Callable[[History], Picture | None], history: History) -> Picture | None:
    picture = draw(history)
    return None if picture is None else _renamed(picture, f"{picture.name}-{history.name}")


def _renamed(picture: Picture, name: str) -> Picture:
    return replace(picture, name=plain_name(name))


def _groups(items: Sequence[Item], key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Yields the items of each key, in the order of their first one."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    yield from groups.values()


def _parts(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    """Yields as few parts of at most `most` items as possible, of about equal size."""
    size = math.ceil(len(items) / math.ceil(len(items) / most))
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _digests(history: History) -> dict[str, Any]:
    return dict(history.start.get("data", {}).get("digests", {}))


def _validation_key(history: History) -> Hashable:
    """Returns the settings in which comparable validation accuracies agree."""
    attack, validation = history.config.attack, history.config.validation
    return (
        _digests(history).get("val", history.name),
        attack.norm,
        attack.eps,
        validation.steps,
        validation.max_samples,
    )


def _probe_key(history: History) -> Hashable:
    """Returns the settings in which comparable probes agree."""
    if history.probe is None:
        return None
    digests = _digests(history)
    return (history.probe.settings, digests.get("train"), digests.get("val"))


def _images_key(curve: RobustnessCurve) -> tuple[Hashable, ...]:
    return (curve.digest, curve.threat.norm, curve.steps)


def _uniquely_named(parts: Sequence[Section]) -> list[Section]:
    """Numbers pictures whose file names differ in case at most."""
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
