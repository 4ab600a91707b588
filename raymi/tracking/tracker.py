"""Delivery of a training run to MLflow: in order, once, and without blocking training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.runs.run_folder import RunFolder
from raymi.tracking.delivery import Delivery
from raymi.tracking.tracked_run import TrackedRun


class Tracker(Delivery):
    """Delivery of a run's journal to MLflow, in a thread of the driver.

    Args:
        config: of the run.
        folder: of the run.
        about: facts about the run: `id` (unique), `recipe`, `command`, tags.
        home: folder of the local store if no server is set.
        log: callback for a line when the store stops and resumes answering.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        about: dict[str, Any],
        home: Path,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tracked = TrackedRun(config, folder, about, home, log=log)
        super().__init__(self.tracked.uri, "run", log)

    @property
    def run_id(self) -> str | None:
        """Id in MLflow; None until the run was found or created."""
        return self.tracked.run_id

    @property
    def models(self) -> dict[str, str]:
        """URIs of the logged models by name; of the chosen one, its registered version."""
        return self.tracked.models

    def _deliver(self, closing: str | None) -> None:
        self.tracked.deliver(closing)

    def _mark(self, status: str) -> None:
        self.tracked.interrupt(status)
