"""Candidates of a selection: logged classifiers with their accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from raymi.statistics import Number

CLEAN = "clean"


class Protocol(NamedTuple):
    """Evaluation protocol; only accuracies of one protocol are compared.

    Attributes:
        data: name of the images.
        digest: first digits of their checksum.
        num: number of images.
        threat: such as `linf_8_255`.
        of_training: True if measured at the end of a training instead of by `raymi.evaluate`.
    """

    data: str
    digest: str
    num: int
    threat: str
    of_training: bool

    def text(self) -> str:
        """Returns images and threat for messages."""
        return f"{self.data} ({self.num} images), {self.threat}"


@dataclass(frozen=True)
class Candidate:
    """Accuracies of a logged model under one protocol.

    Attributes:
        name: of its run and of the model, joined by a slash.
        model_id: in MLflow.
        run_id: of the run that logged it; None: logged outside of a run.
        protocol: of all its accuracies.
        numbers: accuracies by attack as named in metrics, "clean" among them.
        doubts: signs of false robustness from any evaluation; empty: none.
        evaluations: protocol hashes of its evaluations, whose outcomes may be artifacts.
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
        """Names of its attacks, without "clean"."""
        return tuple(name for name in self.numbers if name != CLEAN)
