"""Training run in MLflow, delivered from its journal in order, each event once.

The progress of the delivery is saved beside the journal, so that the next attempt or a resumed run
continues there.
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
from raymi.formatting import listed
from raymi.overrides import flatten
from raymi.runs.journal import JournalReader
from raymi.runs.json_types import TrackingState
from raymi.runs.record import RunRecord, chosen_model, data_of, read_tracking
from raymi.runs.run_folder import RunFolder
from raymi.tracking import store
from raymi.tracking.datasets import dataset_splits, link_datasets
from raymi.tracking.description import NOTE, evaluations_in, run_description
from raymi.tracking.journal_metrics import all_logged, event_metrics, log_machine_metrics
from raymi.tracking.metric_names import rounded
from raymi.tracking.mlflow_run import MlflowRun
from raymi.tracking.model_card import write_card
from raymi.tracking.models import NotExportable, log_accuracies, log_model, metric_times
from raymi.tracking.provenance import PROVENANCE, run_tags, source_tags
from raymi.tracking.registry import register_model

Event = dict[str, Any]
_METRICS_PER_BATCH = 1000  # limit of MLflow


class TrackedRun(MlflowRun):
    """Run folder and its run in MLflow.

    Args:
        config: of the run.
        folder: of the run.
        about: facts about the run: `id` (unique), `recipe`, `command`, and its provenance.
        home: folder of the local store if no server is set.
        uri: of the store; None: see `store_uri`.
        name: in MLflow; None: name of the folder.
        parent: id of the MLflow run of its sweep; None: the run is no trial.
        params: additional parameters, which replace the configuration's.
        log: callback for a line where a model cannot be logged.
        registers: whether the chosen model becomes a registered version.
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
        log: Callable[[str], None] = lambda _: None,
        registers: bool = True,
    ) -> None:
        delivered = read_tracking(folder)
        super().__init__(folder.path, home, uri or store.store_uri(delivered, home))
        self.config, self.folder, self.about, self.log = config, folder, about, log
        self.closes_stale_runs = parent is None  # otherwise the run of the sweep does
        self._name, self._parent, self._params = name or folder.name, parent, params or {}
        self._registers = registers
        public_uri = store.without_password(self.uri)
        self._state = TrackingState(uri=public_uri).model_dump()
        # Another store gets everything from the beginning.
        if store.without_password(delivered.get("uri", "")) == public_uri:
            self._state |= {**delivered, "uri": public_uri}

    @property
    def run_id(self) -> str | None:
        """Id in MLflow; None until the run was found or created."""
        return self._state["run_id"]

    @property
    def models(self) -> dict[str, str]:
        """URIs of the logged models by name; of the chosen one, its registered version."""
        return self._state["models"]

    def is_delivered(self, status: str) -> bool:
        """Returns whether all of the journal is delivered, and the run ended with a status."""
        new = JournalReader(self.folder.journal, self._state["offset"]).new_events()
        if new or not all_logged(self.folder.machine_logs(), self._state["machines"]):
            return False
        return (self._state["ended"], self._state["parent"]) == (status, self._parent)

    def deliver(self, status: str | None, outcome: str = "") -> None:
        """Delivers new events, and the end of the run.

        Args:
            status: FINISHED, KILLED or FAILED; None: the run has not ended.
            outcome: line of the description about the end of a trial.

        Raises:
            Exception: any error of MLflow where the store does not answer.
        """
        self.connect()
        try:
            if status is not None and status != "FINISHED":  # first: little time may be left
                self._end(status)
            self._deliver_events()
            if status is not None:
                self._deliver_end(status, outcome)
        except Exception:
            self.disconnect()
            if status is not None:
                with suppress(Exception):  # only artifacts may be refused: the run has ended
                    self._end(status if self._status == "RUNNING" else self._status)
            raise

    def _deliver_events(self) -> None:
        """Delivers metrics before files: the artifact store may fail alone, and for long."""
        self._deliver_journal()
        logs, positions = self.folder.machine_logs(), self._state["machines"]
        reached = log_machine_metrics(
            self._client, self._state["run_id"], logs, positions, self._began
        )
        if reached != positions:
            self._save(machines=reached)
        if self._state["config_due"]:
            self._client.log_artifact(self.run_id, str(self.folder.config))
            facts = start_facts(self._delivered().start)
            self._client.log_dict(self.run_id, {**self.about, **facts}, PROVENANCE)
            self._save(config_due=False)

    def _deliver_end(self, status: str, outcome: str) -> None:
        evaluations = self._state["evaluations"]
        note = self._client.get_run(self.run_id).data.tags.get(NOTE, "")
        text = run_description(self.config, self.about, evaluations, self._notes(outcome))
        sections = evaluations_in(note)
        self._client.set_tag(self.run_id, NOTE, store.as_tag(text + sections))
        if status == "FINISHED" and self._delivered().is_evaluated:
            try:
                self._log_models()
            except NotExportable as error:
                self._log_accuracies()
                problem = (
                    f"torch.export cannot trace this model ({error}): MLflow gets its weights as "
                    "artifacts, and no model"
                )
                self._log_problem(problem, text, sections)
                for which in evaluations:
                    self._client.log_artifact(self.run_id, str(self.folder.weights(which)))
            except UserError as error:  # damaged weights: another attempt would fail as well
                problem = f"{error}. MLflow gets no further model of this run"
                self._log_problem(problem, text, sections)
        if self.folder.journal.is_file():
            self._client.log_artifact(self.run_id, str(self.folder.journal))
        self._end(status)
        self._save(ended=status)

    def _log_accuracies(self) -> None:
        """Logs the accuracies without the models, the chosen one last."""
        evaluations, data = self._state["evaluations"], data_of(self.folder)
        for which, time in metric_times(evaluations).items():
            evaluation = {**evaluations[which], "time": max(time, self._began / 1000)}
            log_accuracies(self._client, self._state["run_id"], data, evaluation)

    def _log_problem(self, problem: str, text: str, sections: str) -> None:
        """Prints why a model is not logged, and adds it to the description of the run."""
        self.log(problem)
        note = store.as_tag(f"{text}\n\n{problem}.{sections}")
        self._client.set_tag(self.run_id, NOTE, note)

    def _notes(self, outcome: str) -> list[str]:
        """Returns lines for the description: the end of a trial, restarts, shared images."""
        delivered = self._delivered()
        notes = [outcome]
        if restarts := delivered.restarts:
            notes.append(f"Restarts: {len(restarts)} ({listed(restarts, between='; ')}).")
        if warning := start_facts(delivered.start).get("duplicates"):
            notes.append(f"**Warning:** {warning}.")
        return [note for note in notes if note]

    def _delivered(self) -> RunRecord:
        """Returns the delivered events."""
        journal = JournalReader(self.folder.journal, until=self._state["offset"])
        return RunRecord(journal.new_events())

    def _prepare(self) -> Any:
        if self.run_id is not None and not store.has_run(self._client, self.run_id):
            self._save(**TrackingState(uri=self._state["uri"]).model_dump())  # deleted in MLflow
        if self.run_id is None:
            run = self._find_or_create(
                self.config.tracking.experiment,
                self._name,
                self.about,
                run_description(self.config, self.about, {}),
                run_tags(self.config, self.about.get("recipe", ""))
                | ({} if self._parent is None else {"mlflow.parentRunId": self._parent}),
            )
            self._save(run_id=run.info.run_id)
        run = self._client.get_run(self.run_id)
        self._set_running(run)
        if self._state["ended"] is not None:
            self._save(ended=None)
        if not self._state["described"]:
            settings = flatten(json.loads(self.config.model_dump_json())) | dict(self._params)
            self._log_params(run, settings)
            self._save(described=True)
        if self._parent is not None:
            self._client.set_tag(self.run_id, "mlflow.parentRunId", self._parent)
            self._save(parent=self._parent)
        return run

    def _deliver_journal(self) -> None:
        """Delivers new events of the journal, with the metrics of many events in one request."""
        from mlflow.entities import Metric

        journal = JournalReader(self.folder.journal, self._state["offset"])
        batch: list[Any] = []
        changes: dict[str, Any] = {}

        def send() -> None:
            if batch:
                self._client.log_batch(self.run_id, metrics=batch)
                batch.clear()
            if changes:
                self._save(**changes)
                changes.clear()

        for event in journal.new_events():
            if event["kind"] == "start":
                send()
                self._deliver_start(event)
                changes |= {"config_due": True, "starts": self._state["starts"] + 1}
                if restarts := self._state["starts"]:
                    when = max(int(1000 * event["time"]), self._began, self._state["latest"])
                    batch.append(Metric("restarts", restarts, when, event["global_step"]))
                    changes["latest"] = when
                continue
            try:
                values, step, new = event_metrics(event, self._state | changes)
            except UserError:  # it lacks a field
                continue
            if len(batch) + len(values) > _METRICS_PER_BATCH:
                send()
            # If a clock jumps back, times stay in order and after the start of the run.
            when = max(int(1000 * event["time"]), self._began, (self._state | changes)["latest"])
            batch += [Metric(name, rounded(value), when, step) for name, value in values.items()]
            changes |= {**new, "latest": when} if values else new
        if journal.offset != self._state["offset"]:
            changes["offset"] = journal.offset
        send()

    def _deliver_start(self, event: Event) -> None:
        facts = start_facts(event)
        for key in ("workers", "device", "version"):
            self._client.set_tag(self.run_id, f"raymi.{key}", str(facts[key]))
        link_datasets(self._client, self._state["run_id"], dataset_splits(event["data"]))

    def _log_models(self) -> None:
        """Logs the evaluated models and registers the chosen one, each once, with their cards."""
        client, run_id, state = self._client, self._state["run_id"], self._state
        data = data_of(self.folder)
        tags = source_tags(self.about)
        for which, time in metric_times(state["evaluations"]).items():
            if which not in state["model_ids"]:
                evaluation = {**state["evaluations"][which], "time": max(time, self._began / 1000)}
                model = log_model(self.config, self.folder, client, run_id, data, evaluation, tags)
                client.update_run(run_id, status=self._status)  # `log_model` changes it
                self._save(model_ids={**state["model_ids"], which: model})
        if not state["models"]:
            chosen, ids = chosen_model(state["evaluations"]), state["model_ids"]
            uris = {which: f"models:/{model}" for which, model in ids.items()}
            if self._registers:
                uris[chosen] = register_model(self.config, client, run_id, ids[chosen])
            for model in ids.values():
                write_card(client, model)
            self._save(models=uris)

    def _save(self, **changes: Any) -> None:
        self._state |= changes
        write_atomically(self.folder.tracking, json.dumps(self._state).encode())


def start_facts(start: Mapping[str, Any]) -> dict[str, Any]:
    """Returns facts about a session of a run, for `PROVENANCE`.

    Args:
        start: event of the journal.
    """
    keys = ("workers", "device", "torch", "version", "machine")
    facts = {key: start.get(key, "unknown") for key in keys}
    facts["parameters"] = start.get("parameters", {})
    data = start.get("data", {})
    if warning := describe_duplicates(data.get("duplicates", {}), data.get("sizes", {})):
        facts["duplicates"] = warning
    return facts
