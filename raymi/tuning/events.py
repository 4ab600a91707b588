"""What happens in a sweep, as those who follow it are told."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from raymi.tuning.study import Trial
from raymi.tuning.sweep_folder import Measurement, TrialRun

Kind = Literal["began", "measured", "advanced", "finished", "stopped", "paused", "failed"]


class News(NamedTuple):
    """Something that happened to a run of a trial: with what it reached by then. The trial is as it
    is after it: where a seed's run fails, it has failed; where its last one finishes, it has
    finished. "advanced": to the end of a generation of its population."""

    kind: Kind
    run: TrialRun
    trial: Trial
    measured: Measurement | None = None


class SweepCallback(Protocol):
    """Somebody who follows a sweep; told from any thread, must return quickly."""

    def print_line(self, message: str, style: str = "") -> None:
        """Takes a line for people."""

    def news(self, news: News) -> None:
        """Takes what happened."""
