"""Events of a sweep and the callback that receives them."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from raymi.tuning.study import Trial
from raymi.tuning.sweep_folder import Measurement, TrialRun

EventKind = Literal["began", "measured", "advanced", "finished", "stopped", "paused", "failed"]


class TrialEvent(NamedTuple):
    """Event of a trial's run.

    Attributes:
        kind: The event; "advanced" means that the run completed a PBT generation.
        run: The run.
        trial: Its trial after the event: "failed" once the run of any seed has failed, "finished"
            once the runs of all seeds have finished.
        measurement: Best validation accuracies of the run so far; None before the first ones.
    """

    kind: EventKind
    run: TrialRun
    trial: Trial
    measurement: Measurement | None = None


class SweepCallback(Protocol):
    """Callback for sweep events; called from any thread, must return quickly."""

    def print_line(self, message: str, style: str = "") -> None:
        """Prints a message for the user."""

    def on_trial_event(self, event: TrialEvent) -> None:
        """Handles an event of a trial's run."""
