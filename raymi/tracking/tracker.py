"""The one writer to MLflow: delivers a run's journal, in order and once, and never holds up
training.

It reads the journal in a thread of the driver. What could not be delivered stays in the journal on
disk and is tried again; how far delivery got is kept beside it, so that a continued run goes on
from there.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.engine.journal import JournalReader
from raymi.engine.run_folder import RunFolder
from raymi.files import write_atomically
from raymi.overrides import flatten
from raymi.tracking import store
from raymi.tracking.datasets import DataSet, link_datasets
from raymi.tracking.description import describe
from raymi.tracking.models import NotExportable, log_model, register_model

Event = dict[str, Any]
_POLL_SECONDS = 0.5
_RETRY_SECONDS = (1.0, 30.0)  # first wait after a failure, longest one
_MOST_PARAMS = 100  # that MLflow takes at once
_NOTHING_DELIVERED: dict[str, Any] = {
    "run_id": None,
    "described": False,
    "offset": 0,
    "step": 0,
    "epoch_step": 0,
    "evaluations": {},  # by name: "last", "best", with "-averaged" after it where weights were
    "probed": False,
    "model_ids": {},
    "models": {},
}


class Tracker(threading.Thread):
    """Follows the journal of a run and writes it to MLflow.

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
        super().__init__(daemon=True, name="mlflow")
        self.config, self.folder, self.about, self.home = config, folder, about, home
        self.tell = tell
        kept = json.loads(folder.tracking.read_text()) if folder.tracking.is_file() else {}
        named = os.environ.get("MLFLOW_TRACKING_URI")
        self.uri: str = named or kept.get("uri") or store.tracking_uri(home)
        """Address of the MLflow store: of a run that is continued, the one that it is in."""
        self.problem: str | None = None
        """Why the store does not take what it is sent; None where it does."""
        self._client: Any = None
        self._connected = False
        self._state = {"uri": self.uri, **_NOTHING_DELIVERED}
        if kept.get("uri") == self.uri:  # another store gets everything from the beginning
            self._state |= kept
        self._closing: str | None = None
        self._delivered = threading.Event()
        self._wake = threading.Event()
        self._give_up = threading.Event()

    @property
    def run_id(self) -> str | None:
        """The run in MLflow; None until it was found or made."""
        return self._state["run_id"]

    @property
    def answers(self) -> bool:
        """Whether the store took the last thing that it was sent."""
        return self._connected and self.problem is None

    @property
    def models(self) -> dict[str, str]:
        """URIs of the logged models by name; of the chosen one, its registered version."""
        return self._state["models"]

    def close(self, status: str, timeout: float) -> bool:
        """Delivers what is left, then sets the run's status.

        Args: status, FINISHED, KILLED or FAILED; timeout in seconds.
        Returns: whether everything was delivered; what was not stays on disk.
        """
        self._closing = status
        self._wake.set()
        self.join(timeout)
        self._give_up.set()
        return self._delivered.is_set()

    def run(self) -> None:
        shortest, longest = _RETRY_SECONDS
        wait = shortest
        while not self._give_up.is_set():
            closing = self._closing
            try:
                self._deliver(closing)
            except Exception as error:  # whatever the server or the network does, training goes on
                self._say_problem(error)
                # A close wakes us at once; from then on only its time limit counts.
                (self._give_up if closing else self._wake).wait(wait)
                wait = shortest if closing else min(2 * wait, longest)
                continue
            if self.problem is not None:
                self.tell("MLflow answers again")
            self.problem, wait = None, shortest
            if closing:
                self._delivered.set()
                return
            self._wake.wait(_POLL_SECONDS)

    def _say_problem(self, error: Exception) -> None:
        told = self.problem is not None
        self.problem = store.in_one_line(error, self.uri)
        if not told:
            self.tell(
                f"MLflow at {store.without_password(self.uri)} does not take what it is sent "
                f"({self.problem}): the run "
                "goes on, and all of it is delivered later"
            )

    def _deliver(self, closing: str | None) -> None:
        """Brings MLflow up to date, and closes the run there if it has ended."""
        self._connect()
        journal = JournalReader(self.folder.journal, self._state["offset"])
        for event in journal.new_events():
            self._send(event)
        if journal.offset != self._state["offset"]:
            self._keep(offset=journal.offset)
        if closing is None:
            return
        evaluations = self._state["evaluations"]
        text = describe(self.config, self.about, evaluations)
        if closing == "FINISHED":
            try:
                self._log_models(text)
            except NotExportable as error:
                self.tell(
                    f"torch.export cannot trace this model ({error}): MLflow gets its weights as "
                    "artifacts, and no model"
                )
                for which in self._state["evaluations"]:
                    self._client.log_artifact(self.run_id, str(self.folder.weights(which)))
        self._client.set_tag(self.run_id, "mlflow.note.content", text)
        self._client.set_terminated(self.run_id, closing)

    def _connect(self) -> None:
        """Finds or makes our run in MLflow."""
        if self._connected:
            return
        if self._client is None:
            self._client = store.connect(self.uri)
        if self.run_id is not None and not store.has_run(self._client, self.run_id):
            self._keep(**_NOTHING_DELIVERED)  # somebody deleted it: it is made anew
        if self.run_id is None:
            experiment = store.experiment_id(
                self._client, self.config.tracking.experiment, self.home
            )
            found = self._client.search_runs(
                [experiment], f"tags.`raymi.id` = '{self.about['id']}'", max_results=1
            )
            self._keep(run_id=(found[0] if found else self._create(experiment)).info.run_id)
        self._client.update_run(self.run_id, status="RUNNING")
        if not self._state["described"]:
            self._describe()
            self._keep(described=True)
        self._connected = True

    def _create(self, experiment: str) -> Any:
        tags = {f"raymi.{k}": str(v) for k, v in self.about.items()}
        tags["mlflow.note.content"] = describe(self.config, self.about, {})
        return self._client.create_run(experiment, run_name=self.folder.name, tags=tags)

    def _describe(self) -> None:
        from mlflow.entities import Param

        settings = flatten(json.loads(self.config.model_dump_json()))
        params = [Param(k, str(v)) for k, v in settings.items()]
        for first in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.run_id, params=params[first : first + _MOST_PARAMS])
        self._client.log_artifact(self.run_id, str(self.folder.config))

    def _send(self, event: Event) -> None:
        """Delivers one event; a replayed one is left out."""
        kind, phase, step = event["kind"], event["phase"], event["global_step"]
        prefix = "" if phase == "classifier" else f"{phase}/"
        if kind == "start":
            self._send_start(event)
        elif kind == "step" and step > self._state["step"]:
            metrics = {f"{prefix}step/{k}": v for k, v in event["metrics"].items()}
            self._log(event, metrics, step=step)
            self._state["step"] = step  # kept on disk with the next epoch
        elif kind == "epoch" and step > self._state["epoch_step"]:
            metrics = {f"train/{k}": v for k, v in event["train"].items()}
            metrics |= {f"val/{k}": v for k, v in event["val"].items()}
            metrics |= {k: event[k] for k in ("lr", "images_per_s")}
            self._log(event, {f"{prefix}{k}": v for k, v in metrics.items()})
            self._keep(epoch_step=step)
        elif kind == "evaluation" and event["which"] not in self._state["evaluations"]:
            which, attack = event["which"], event["attack"]
            name = f"pgd{attack['steps']}_acc"
            values = {"clean_acc": event["clean"], name: event["robust"]}
            metrics = {f"test/{which}/{k}": v for k, v in values.items()}
            evaluations = {**self._state["evaluations"], which: event}
            self._log(event, metrics | _overfitting_gap(evaluations, which))
            self._keep(evaluations=evaluations)
        elif kind == "probe" and not self._state["probed"]:
            self._log(event, {f"probe/{k}": v for k, v in event["estimates"].items()})
            self._keep(probed=True)

    def _send_start(self, event: Event) -> None:
        facts = {k: event[k] for k in ("workers", "device", "torch", "version")}
        facts |= {f"parameters.{k}": v for k, v in event["parameters"].items()}
        for key, value in facts.items():
            self._client.set_tag(self.run_id, f"raymi.{key}", str(value))
        data = event["data"]
        sets = [DataSet(f"{data['name']}-{k}", v, k) for k, v in data["digests"].items()]
        link_datasets(self._client, self._state["run_id"], sets)

    def _log(self, event: Event, metrics: dict[str, Any], step: int | None = None) -> None:
        from mlflow.entities import Metric

        step = event["epoch"] if step is None else step
        timestamp = int(1000 * event["time"])
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(k, float(v), timestamp, step) for k, v in metrics.items()],
        )

    def _log_models(self, text: str) -> None:
        """Logs the evaluated models and registers the chosen one, each once."""
        client, run_id, state = self._client, self._state["run_id"], self._state
        events = JournalReader(self.folder.journal).new_events()
        data = next(event["data"] for event in reversed(events) if event["kind"] == "start")
        # The run shows the numbers of what was logged last: the chosen one.
        evaluated = sorted(state["evaluations"], key=lambda k: state["evaluations"][k]["chosen"])
        for which in evaluated:
            if which not in state["model_ids"]:
                evaluation = state["evaluations"][which]
                made = log_model(self.config, self.folder, client, run_id, data, evaluation)
                self._keep(model_ids={**state["model_ids"], which: made})
        if not state["models"]:
            chosen, ids = evaluated[-1], state["model_ids"]
            version = register_model(self.config, client, run_id, ids[chosen], text)
            uris = {which: f"models:/{made}" for which, made in ids.items()}
            self._keep(models={**uris, chosen: version})

    def _keep(self, **state: Any) -> None:
        self._state |= state
        write_atomically(self.folder.tracking, json.dumps(self._state).encode())


def _overfitting_gap(evaluations: dict[str, Event], which: str) -> dict[str, float]:
    """How much robust accuracy the last model has lost against the best, once both are known."""
    suffix = which.removeprefix("best")
    if not which.startswith("best") or f"last{suffix}" not in evaluations:
        return {}
    gap = evaluations[which]["robust"] - evaluations[f"last{suffix}"]["robust"]
    return {f"test/robust_overfitting_gap{suffix}": gap}
