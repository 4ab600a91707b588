"""The one writer to MLflow: delivers a run's journal, in order and once, and never holds up
training.

It reads the journal in a thread of the driver. What could not be delivered stays in the journal on
disk and is tried again; how far delivery got is kept beside it, so that a continued run goes on
from there.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.engine.checkpoint import write_atomically
from raymi.engine.journal import JournalReader
from raymi.engine.run_folder import RunFolder
from raymi.overrides import flatten
from raymi.tracking import store
from raymi.tracking.models import log_models

Event = dict[str, Any]
_RETRY_SECONDS = (1.0, 30.0)  # first wait after a failure, longest one


class Tracker(threading.Thread):
    """Follows the journal of a run and writes it to MLflow.

    Args:
        about: what is known of the run: `id` (ours, unique), `recipe`, `command`, tags.
        home: folder of the local store where no server is named.
    """

    def __init__(
        self, config: Config, folder: RunFolder, about: dict[str, Any], home: Path
    ) -> None:
        super().__init__(daemon=True, name="mlflow")
        self.config, self.folder, self.about, self.home = config, folder, about, home
        self.problem: str | None = None
        self.run_id: str | None = None
        self.models: dict[str, str] = {}
        self._client: Any = None
        self._state: dict[str, Any] = {
            "run_id": None,
            "offset": 0,
            "epoch": 0,
            "status": None,
            "models": {},
        }
        if folder.tracking.is_file():
            self._state |= json.loads(folder.tracking.read_text())
        self._closing: str | None = None
        self._wake = threading.Event()
        self._give_up = threading.Event()

    @property
    def uri(self) -> str:
        """Address of the MLflow store."""
        return store.tracking_uri(self.home)

    def close(self, status: str, timeout: float) -> bool:
        """Delivers what is left, then sets the run's status.

        Args: status, FINISHED, KILLED or FAILED; timeout in seconds.
        Returns: whether everything was delivered; what was not stays on disk.
        """
        self._closing = status
        self._wake.set()
        self.join(timeout)
        self._give_up.set()
        return not self.is_alive() and self._state["status"] == status

    def run(self) -> None:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        wait = _RETRY_SECONDS[0]
        while not self._give_up.is_set():
            try:
                finished = self._deliver()
                self.problem, wait = None, _RETRY_SECONDS[0]
            except Exception as error:  # whatever the server or the network does, training goes on
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                self._give_up.wait(wait)
                wait = min(2 * wait, _RETRY_SECONDS[1])
                continue
            if finished:
                return
            self._wake.wait(0.5)

    def _deliver(self) -> bool:
        """Brings MLflow up to date; true when the run is closed there."""
        status = self._closing
        self._connect()
        journal = JournalReader(self.folder.journal, self._state["offset"])
        for event in journal.new_events():
            self._send(event)
        self._keep(offset=journal.offset)
        if status is None:
            return False
        if status == "FINISHED" and not self._state["models"]:
            self._keep(models=log_models(self.config, self.folder, self._client, self.run_id))
        self.models = self._state["models"]
        self._client.set_terminated(self.run_id, status)
        self._keep(status=status)
        return True

    def _connect(self) -> None:
        """Finds or makes our run in MLflow."""
        if self._client is None:
            self._client = store.connect(self.home)
        if self.run_id is not None:
            return
        run_id = self._state["run_id"]
        if run_id is None:
            experiment = store.experiment_id(
                self._client, self.config.tracking.experiment, self.home
            )
            found = self._client.search_runs(
                [experiment], f"tags.`raymi.id` = '{self.about['id']}'", max_results=1
            )
            run_id = found[0].info.run_id if found else self._create(experiment)
            self._keep(run_id=run_id)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def _create(self, experiment: str) -> str:
        from mlflow.entities import Param

        tags = {f"raymi.{k}": str(v) for k, v in self.about.items()}
        run = self._client.create_run(experiment, run_name=self.folder.name, tags=tags)
        settings = flatten(json.loads(self.config.model_dump_json()))
        params = [Param(k, str(v)) for k, v in settings.items()]
        self._client.log_batch(run.info.run_id, params=params)
        self._client.log_artifact(run.info.run_id, str(self.folder.config))
        return run.info.run_id

    def _send(self, event: Event) -> None:
        """Delivers one event; a replayed one is left out."""
        kind, epoch = event["kind"], event["epoch"]
        if kind == "start":
            self._send_start(event)
        elif kind == "epoch" and epoch > self._state["epoch"]:
            metrics = {f"train/{k}": v for k, v in event["train"].items()}
            metrics |= {f"val/{k}": v for k, v in event["val"].items()}
            self._log(event, {**metrics, "lr": event["lr"], "images_per_s": event["images_per_s"]})
            self._keep(epoch=epoch)
        elif kind == "evaluation":
            which, attack = event["which"], event["attack"]
            name = f"pgd{attack['steps']}_acc"
            values = {"clean_acc": event["clean"], name: event["robust"]}
            self._log(event, {f"test/{which}/{k}": v for k, v in values.items()})

    def _send_start(self, event: Event) -> None:
        from mlflow.data.http_dataset_source import HTTPDatasetSource
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import DatasetInput, InputTag

        facts = {k: event[k] for k in ("workers", "device", "torch", "version")}
        for key, value in facts.items():
            self._client.set_tag(self.run_id, f"raymi.{key}", str(value))
        data = event["data"]
        inputs = []
        for split, digest in data["digests"].items():
            dataset = MetaDataset(
                HTTPDatasetSource(url=f"raymi:{data['name']}/{split}"),
                name=f"{data['name']}-{split}",
                digest=digest[:32],
            )
            tags = [InputTag("mlflow.data.context", split)]
            inputs.append(DatasetInput(dataset._to_mlflow_entity(), tags))
        self._client.log_inputs(self.run_id, inputs)

    def _log(self, event: Event, metrics: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        timestamp = int(1000 * event["time"])
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(k, float(v), timestamp, event["epoch"]) for k, v in metrics.items()],
        )

    def _keep(self, **state: Any) -> None:
        self._state |= state
        write_atomically(self.folder.tracking, json.dumps(self._state).encode())
