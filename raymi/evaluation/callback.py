"""Callback for the progress of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from raymi.attacks.suites import Ensemble
from raymi.evaluation.blocks import Outcome, Schedule, Step
from raymi.evaluation.finding import Finding


class EvaluationCallback:
    """Callback for events of an evaluation, of which each is ignored by default."""

    def on_message(self, message: str) -> None:
        """Receives a line about workers; from any thread."""

    def on_workers(self, num_workers: int) -> None:
        """Called when the workers are ready."""

    def on_model(self, name: str, schedule: Schedule, main: Sequence[Ensemble]) -> None:
        """Called before the steps of a classifier.

        Args:
            name: of the classifier.
            schedule: its steps.
            main: ensembles to report; the other ensembles of the schedule belong to the checks.
        """

    def on_step(self, step: Step, outcome: Outcome, cached: bool) -> None:
        """Called after each step; `cached`: the outcome was in the store."""

    def on_finding(self, finding: Finding) -> None:
        """Called for the result of each check."""

    def on_end(self) -> None:
        """Called after the last step."""
