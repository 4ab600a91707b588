"""Run in MLflow of a folder on disk: found or created, with its status."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymi.tracking import store
from raymi.tracking.description import NOTE
from raymi.tracking.provenance import source_tags
from raymi.tracking.stale_runs import LOCATION, close_stale_runs, run_location

RUN_ID = "mlflow.raymi.id"
"""Tag by which a run is found again. MLflow's UI hides tags that begin with "mlflow."."""

_PARAMS_PER_BATCH = 100  # limit of MLflow


class MlflowRun(ABC):
    """Run in MLflow of a training run or a sweep.

    Args:
        path: folder of the run or sweep.
        home: folder of the local store if no server is set.
        uri: of the store.
    """

    closes_stale_runs = True
    """True if `connect` closes stale runs of the experiment."""

    def __init__(self, path: Path, home: Path, uri: str) -> None:
        self.home, self.uri = home, uri
        self._path = path
        self._client: Any = None
        self._connected = False
        self._status = "RUNNING"
        """Status until the end of the run; see `interrupt`."""
        self._began = 0
        """Start of the run in milliseconds since the epoch."""

    @property
    @abstractmethod
    def run_id(self) -> str | None:
        """Id in MLflow; None until the run was found or created."""

    @abstractmethod
    def _prepare(self) -> Any:
        """Finds or creates the run, completes its parameters and tags, and returns its entity."""

    def connect(self) -> None:
        """Finds or creates the run, the first time and after `disconnect`.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        if self._connected:
            return
        if self._client is None:
            self._client = store.connect(self.uri)
        run = self._prepare()
        self._began = run.info.start_time or 0
        self._connected = True
        if self._status != "RUNNING":  # interrupted meanwhile
            self._end(self._status)
        elif self.closes_stale_runs:
            with suppress(Exception):  # of other runs; this one is delivered
                close_stale_runs(self._client, run.info.experiment_id, self.run_id)

    def disconnect(self) -> None:
        """Makes `connect` search for the run again: after a failure it may be deleted."""
        self._connected = False

    def interrupt(self, status: str) -> None:
        """Sets the status until the end of the run, such as KILLED; from another thread.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        self._status = status
        if self._client is not None and self.run_id is not None:
            self._end(status)

    def _end(self, status: str) -> None:
        """Sets the status and the end of the run."""
        assert self.run_id is not None
        store.end_run(self._client, self.run_id, status)

    def _find_or_create(
        self,
        experiment: str,
        name: str,
        about: Mapping[str, Any],
        note: str,
        tags: Mapping[str, str],
    ) -> Any:
        """Returns the run of this folder.

        Args:
            experiment: its name.
            name: of a new run.
            about: facts about the run, with `id`, by which an existing one is found.
            note: description of a new run.
            tags: of a new run.
        """
        experiment_id = store.experiment_id(self._client, experiment, self.home)
        own = f"tags.`{RUN_ID}` = '{about['id']}'"
        if runs := self._client.search_runs([experiment_id], own, max_results=1):
            return runs[0]
        own_tags = {RUN_ID: about["id"], NOTE: note, LOCATION: run_location(self._path)}
        own_tags |= source_tags(about) | dict(tags)
        return self._client.create_run(experiment_id, run_name=name, tags=own_tags)

    def _log_params(self, run: Any, params: Mapping[str, Any]) -> None:
        """Logs parameters of a run; those that it has keep their values.

        MLflow refuses a batch that changes a parameter, as a resumed run may do.
        """
        from mlflow.entities import Param

        new = [Param(k, str(value)) for k, value in params.items() if k not in run.data.params]
        for first in range(0, len(new), _PARAMS_PER_BATCH):
            batch = new[first : first + _PARAMS_PER_BATCH]
            self._client.log_batch(run.info.run_id, params=batch)

    def _set_running(self, run: Any) -> None:
        """Sets location and status of a run."""
        location = run_location(self._path)
        if run.data.tags.get(LOCATION) != location:  # first: stale runs are found by status
            self._client.set_tag(run.info.run_id, LOCATION, location)
        self._client.update_run(run.info.run_id, status=self._status)
