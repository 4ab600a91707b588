"""The one writer to MLflow: delivers a run's journal, in order and once, and never holds up
training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.runs.run_folder import RunFolder
from raymi.tracking.delivery import Delivery
from raymi.tracking.tracked_run import TrackedRun


class Tracker(Delivery):
    """Follows the journal of a run and writes it to MLflow, in a thread of the driver.

    Args:
        about: what is known of the run: `id` (ours, unique), `recipe`, `command`, tags.
        home: folder of the local store where no server is named.
        tell: shown a line when the store stops answering, and when it answers again.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        about: dict[str, Any],
        home: Path,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tracked = TrackedRun(config, folder, about, home, tell=tell)
        super().__init__(self.tracked.uri, "run", tell)

    @property
    def run_id(self) -> str | None:
        """The run in MLflow; None until it was found or made."""
        return self.tracked.run_id

    @property
    def models(self) -> dict[str, str]:
        """URIs of the logged models by name; of the chosen one, its registered version."""
        return self.tracked.models

    def _connect(self) -> None:
        self.tracked.connect()

    def _deliver(self, closing: str | None) -> None:
        self.tracked.deliver(closing)

    def _mark(self, status: str) -> None:
        self.tracked.interrupt(status)
