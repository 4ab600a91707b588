"""Classifiers to choose from, and what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from raymi.statistics import Number

CLEAN = "clean"


class Protocol(NamedTuple):
    """What numbers have in common that may be compared: the name of the images, the first digits of
    their checksum, how many they are; the threat, such as `linf_8_255`; whether they were measured
    at the end of a training, and not by `raymi.evaluate`."""

    data: str
    digest: str
    num: int
    threat: str
    of_training: bool


@dataclass(frozen=True)
class Candidate:
    """What one question says of a logged model.

    Args:
        name: of its run, and its own in it.
        model_id: in MLflow; run_id, None where no run logged it.
        question: that all numbers answer.
        numbers: by the names of attacks as they are in metrics, and "clean".
        doubts: signs of false robustness that any evaluation has found, in words.
        evaluations: keys of the questions that evaluations of it have answered, whose outcomes may
            be kept.
    """

    name: str
    model_id: str
    run_id: str | None
    protocol: Protocol
    numbers: Mapping[str, Number]
    doubts: str = ""
    evaluations: tuple[str, ...] = ()

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of all it was measured with, clean accuracy left out."""
        return tuple(name for name in self.numbers if name != CLEAN)
