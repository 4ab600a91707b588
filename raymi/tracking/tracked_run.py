"""A run in MLflow, delivered from its journal in order, each event once.

Undelivered events stay in the journal on disk; the progress of the delivery is kept beside it, so
that a continued run, or the next attempt, continues there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.data.duplicates import describe_duplicates
from raymi.errors import UserError
from raymi.files import write_atomically
from raymi.overrides import flatten
from raymi.runs.journal import JournalReader
from raymi.runs.record import RunRecord, chosen_model, data_of, read_tracking
from raymi.runs.run_folder import RunFolder
from raymi.tracking import store
from raymi.tracking.datasets import datasets_of, link_datasets
from raymi.tracking.description import NOTE, describe, evaluations_in
from raymi.tracking.journal_metrics import told_by
from raymi.tracking.left_running import PLACE, close_left_running, place_of
from raymi.tracking.machines import all_told, send_records
from raymi.tracking.model_card import write_card
from raymi.tracking.models import NotExportable, log_model, times_of
from raymi.tracking.provenance import source_tags
from raymi.tracking.registry import register_model

Event = dict[str, Any]
_METRICS_AT_ONCE = 1000  # that MLflow takes
_NOTHING_DELIVERED: dict[str, Any] = {
    "run_id": None,
    "described": False,
    "offset": 0,
    "step": 0,
    "epoch_step": 0,
    "best_robust": None,
    "evaluations": {},  # by name: "last", "best", with "-averaged" after it where weights were
    "probed": False,
    "model_ids": {},
    "models": {},
    "parent": None,
    "ended": None,  # the status that it was closed with
    "machines": {},  # how far their records are delivered
    "latest": 0,  # time of the last metric, in milliseconds since the epoch
    "config_due": False,  # whether it started since its configuration was sent
}


class TrackedRun:
    """A run's folder and its run in MLflow.

    Args:
        about: what is known of the run: `id` (ours, unique), `recipe`, `command`, tags.
        home: folder of the local store where no server is named.
        uri: of the store, None: that which the run is in, or where the user has one.
        name: in MLflow; None: that of the folder.
        parent: id of the MLflow run that it is part of.
        params: more of them than the configuration, or other ones.
        tell: shown a line where a model cannot be logged.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        about: Mapping[str, Any],
        home: Path,
        *,
        uri: str | None = None,
        name: str | None = None,
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.folder, self.about, self.home = config, folder, about, home
        self.tell = tell
        kept = read_tracking(folder)
        self.uri: str = uri or store.address(kept, home)
        """Address of the MLflow store."""
        self._name, self._parent, self._params = name or folder.name, parent, params or {}
        self._client: Any = None
        self._connected = False
        self._status = "RUNNING"  # while it has not ended; see `interrupt`
        self._began, self._experiment = 0, ""  # milliseconds since the epoch; its id
        place = store.without_password(self.uri)
        self._state = {**_NOTHING_DELIVERED, "uri": place}
        # Another store gets everything from the beginning.
        if store.without_password(kept.get("uri", "")) == place:
            self._state |= {**kept, "uri": place}

    @property
    def run_id(self) -> str | None:
        """The run in MLflow; None until it was found or made."""
        return self._state["run_id"]

    @property
    def models(self) -> dict[str, str]:
        """URIs of the logged models by name; of the chosen one, its registered version."""
        return self._state["models"]

    def is_delivered(self, status: str) -> bool:
        """Whether all that is in the journal by now was delivered, and this status last."""
        new = JournalReader(self.folder.journal, self._state["offset"]).new_events()
        if new or not all_told(self.folder.machine_logs(), self._state["machines"]):
            return False
        return (self._state["ended"], self._state["parent"]) == (status, self._parent)

    def deliver(self, status: str | None, tags: Mapping[str, str] | None = None) -> None:
        """Brings MLflow up to date.

        Args: status, FINISHED, KILLED or FAILED, where the run has ended; tags that it gets then.
        Raises: whatever MLflow raises where the store does not answer.
        """
        self.connect()
        try:
            if status is not None and status != "FINISHED":  # first: little time may be left
                store.end_run(self._client, self._state["run_id"], status)
            self._send_news()
            if status is not None:
                self._end(status, tags or {})
        except Exception:
            self._connected = False  # the run may be gone, too: it is looked for at the next try
            if status is not None:
                shown = status if self._status == "RUNNING" else self._status
                with suppress(Exception):  # files alone may be refused: the run has ended
                    store.end_run(self._client, self._state["run_id"], shown)
            raise

    def interrupt(self, status: str) -> None:
        """Sets the status that the run has until it has ended, such as KILLED; called from another
        thread than the delivery's.

        Raises: any error of MLflow where the store does not answer.
        """
        self._status = status
        if self._client is not None and self.run_id is not None:
            store.end_run(self._client, self._state["run_id"], self._status)

    def _send_news(self) -> None:
        """Metrics go first: where files are kept may fail alone, and for long."""
        self._send_journal()
        logs, told = self.folder.machine_logs(), self._state["machines"]
        sent = send_records(self._client, self._state["run_id"], logs, told, self._began)
        if (machines := sent) != told:
            self._keep(machines=machines)
        if self._state["config_due"]:
            self._client.log_artifact(self.run_id, str(self.folder.config))
            self._keep(config_due=False)

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        evaluations = self._state["evaluations"]
        note = self._client.get_run(self.run_id).data.tags.get(NOTE, "")
        text = describe(self.config, self.about, evaluations)
        told_of = evaluations_in(note)
        for tag, value in {**tags, NOTE: store.as_tag(text + told_of)}.items():
            self._client.set_tag(self.run_id, tag, value)
        if status == "FINISHED" and self._is_evaluated():
            try:
                self._log_models()
            except NotExportable as error:
                problem = (
                    f"torch.export cannot trace this model ({error}): MLflow gets its weights as "
                    "artifacts, and no model"
                )
                self.tell(problem)
                text = store.as_tag(f"{text}\n\n{problem}.{told_of}")
                self._client.set_tag(self.run_id, NOTE, text)
                for which in evaluations:
                    self._client.log_artifact(self.run_id, str(self.folder.weights(which)))
            except UserError as error:  # damaged weights: to try again would not help
                problem = f"{error}. MLflow gets no further model of this run"
                self.tell(problem)
                text = store.as_tag(f"{text}\n\n{problem}.{told_of}")
                self._client.set_tag(self.run_id, NOTE, text)
        if self.folder.journal.is_file():
            self._client.log_artifact(self.run_id, str(self.folder.journal))
        store.end_run(self._client, self._state["run_id"], status)
        self._keep(ended=status)

    def _is_evaluated(self) -> bool:
        """Whether all models of the run were evaluated, and not only the first ones by now, as far
        as is delivered: more may have been written since."""
        delivered = JournalReader(self.folder.journal, until=self._state["offset"])
        return RunRecord(delivered.new_events()).is_evaluated

    def connect(self) -> None:
        """Finds or makes our run in MLflow, the first time.

        Raises: whatever MLflow raises where the store does not answer.
        """
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
            run = store.find_run(self._client, experiment, self.about["id"])
            self._keep(run_id=(run or self._create(experiment)).info.run_id)
        self._set_running()
        if self._state["ended"] is not None:
            self._keep(ended=None)
        if not self._state["described"]:
            self._describe()
            self._keep(described=True)
        if self._parent is not None:
            self._client.set_tag(self.run_id, "mlflow.parentRunId", self._parent)
            self._keep(parent=self._parent)
        self._connected = True
        if self._status != "RUNNING":  # interrupted since
            store.end_run(self._client, self._state["run_id"], self._status)
        elif self._parent is None:
            with suppress(Exception):  # of other runs: this one is delivered all the same
                close_left_running(self._client, self._experiment, self._state["run_id"])

    def _set_running(self) -> None:
        run = self._client.get_run(self._state["run_id"])
        self._began, self._experiment = run.info.start_time or 0, run.info.experiment_id
        place = place_of(self.folder.path)
        if run.data.tags.get(PLACE) != place:  # before the status, by which others look for it
            self._client.set_tag(self.run_id, PLACE, place)
        self._client.update_run(self.run_id, status=self._status)

    def _create(self, experiment: str) -> Any:
        tags = {f"raymi.{k}": str(v) for k, v in self.about.items()}
        tags[NOTE] = describe(self.config, self.about, {})
        tags |= source_tags(self.about) | {PLACE: place_of(self.folder.path)}
        if self._parent is not None:
            tags["mlflow.parentRunId"] = self._parent
        return self._client.create_run(experiment, run_name=self._name, tags=tags)

    def _describe(self) -> None:
        settings = flatten(json.loads(self.config.model_dump_json())) | dict(self._params)
        store.log_params(self._client, self._state["run_id"], settings)

    def _send_journal(self) -> None:
        """Delivers the events since the last one that was, metrics of many of them at once."""
        from mlflow.entities import Metric

        journal = JournalReader(self.folder.journal, self._state["offset"])
        waiting: list[Any] = []
        reached: dict[str, Any] = {}

        def send() -> None:
            if waiting:
                self._client.log_batch(self.run_id, metrics=waiting)
                waiting.clear()
            if reached:
                self._keep(**reached)
                reached.clear()

        for event in journal.new_events():
            if event["kind"] == "start":
                send()
                self._send_start(event)
                reached["config_due"] = True
                continue
            try:
                values, step, then = told_by(event, self._state | reached)
            except UserError:  # it lacks a field: there is nothing to deliver
                continue
            if len(waiting) + len(values) > _METRICS_AT_ONCE:
                send()
            # A clock that jumps back makes no time negative, nor the order another one.
            when = max(int(1000 * event["time"]), self._began, (self._state | reached)["latest"])
            waiting += [Metric(name, float(value), when, step) for name, value in values.items()]
            reached |= {**then, "latest": when} if values else then
        if journal.offset != self._state["offset"]:
            reached["offset"] = journal.offset
        send()

    def _send_start(self, event: Event) -> None:
        keys = ("workers", "device", "torch", "version", "machine")
        facts = {k: event.get(k, "unknown") for k in keys}
        facts |= {f"parameters.{k}": v for k, v in event.get("parameters", {}).items()}
        data = event["data"]
        if warning := describe_duplicates(data.get("duplicates", {}), data.get("sizes", {})):
            facts["duplicates"] = warning
        for key, value in facts.items():
            self._client.set_tag(self.run_id, f"raymi.{key}", str(value))
        link_datasets(self._client, self._state["run_id"], datasets_of(data))

    def _log_models(self) -> None:
        """Logs the evaluated models and registers the chosen one, each once, with their cards."""
        client, run_id, state = self._client, self._state["run_id"], self._state
        data = data_of(self.folder)
        tags = source_tags(self.about)
        for which, when in times_of(state["evaluations"]).items():
            if which not in state["model_ids"]:
                evaluation = {**state["evaluations"][which], "time": max(when, self._began / 1000)}
                made = log_model(self.config, self.folder, client, run_id, data, evaluation, tags)
                client.update_run(run_id, status=self._status)  # logging it has set another one
                self._keep(model_ids={**state["model_ids"], which: made})
        if not state["models"]:
            chosen, ids = chosen_model(state["evaluations"]), state["model_ids"]
            version = register_model(self.config, client, run_id, ids[chosen])
            for made in ids.values():
                write_card(client, made)
            uris = {which: f"models:/{made}" for which, made in ids.items()}
            self._keep(models={**uris, chosen: version})

    def _keep(self, **state: Any) -> None:
        self._state |= state
        write_atomically(self.folder.tracking, json.dumps(self._state).encode())
