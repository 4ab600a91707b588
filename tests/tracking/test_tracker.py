"""Delivery of journals to a real MLflow store."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow_store import WAIT, Outage, client, history, runs, wait_until
from safetensors.torch import load_file, save_file

from raymi.config import Config
from raymi.errors import UserError
from raymi.formatting import threat_text
from raymi.models import build_model
from raymi.overrides import flatten
from raymi.recipes import build_config
from raymi.runs.journal import Journal, JournalReader
from raymi.runs.run_folder import RunFolder
from raymi.tracking import delivery, store, tracked_run
from raymi.tracking.description import NOTE, run_description
from raymi.tracking.mlflow_run import RUN_ID
from raymi.tracking.models import metric_times
from raymi.tracking.provenance import PROVENANCE
from raymi.tracking.registry import register_model
from raymi.tracking.tracker import Tracker

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("own_store")

ABOUT = {"id": "0123abcd", "recipe": "quickstart", "command": "python -m raymi.train seed=3"}
SIZE, CLASSES, MEAN, STD = 8, 10, [0.4] * 3, [0.3] * 3
SECRET = "s3cr3t-of-this-test"


@pytest.fixture
def config() -> Config:
    model = {"name": "small-cnn", "depth": 4, "width": 0.25}
    return build_config("quickstart", {"seed": 3, "model": model, "optim": {"epochs": 2}})


@pytest.fixture
def folder(tmp_path: Path, config: Config) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    folder.write_config(config)
    return folder


def write_start(
    folder: RunFolder, duplicates: dict[str, int] | None = None, **changes: Any
) -> None:
    data = {
        "name": "digits",
        "num_classes": CLASSES,
        "image_size": SIZE,
        "mean": MEAN,
        "std": STD,
        "class_names": [str(k) for k in range(CLASSES)],
        "sizes": {"train": 1, "val": 1, "test": 1},
        "duplicates": duplicates or {},
        "digests": {"train": "a" * 64, "test": "b" * 64},
    }
    write(folder, "start", 0, **{
        "version": "0.1.0", "workers": 2, "device": "cpu", "torch": torch.__version__,
        "machine": "a good one, 2 cores",
        "parameters": {"classifier": 7}, "data": data, **changes,
    })  # fmt: skip


def write(folder: RunFolder, kind: str, epoch: int, **fields: Any) -> None:
    journal = Journal(folder.journal)
    journal.write(kind, **{
        "phase": "classifier", "epoch": epoch, "step": 0, "global_step": 20 * epoch, **fields,
    })  # fmt: skip
    journal.close()


def write_epoch(folder: RunFolder, epoch: int, loss: float | str = 1.5) -> None:
    write(
        folder, "epoch", epoch, train={"loss": loss, "mi/natural": 0.5},
        val={"clean_acc": 0.9, "robust_acc": 0.5 + epoch / 10}, lr=0.1, images_per_s=100.0,
        is_best=True,
    )  # fmt: skip


def write_evaluations(folder: RunFolder, config: Config) -> None:
    attack = {"norm": "linf", "eps": 8 / 255, "alpha": 2 / 255, "steps": 40}
    for seed, (which, epoch, robust) in enumerate((("last", 2, 0.55), ("best", 1, 0.6))):
        torch.manual_seed(seed)
        save_file(classifier(config).state_dict(), folder.weights(which))
        write(
            folder, "evaluation", 2, which=which, of_epoch=epoch, attack=attack, clean=0.95,
            robust=robust, num=100, chosen=which == "best",
        )  # fmt: skip
    write(folder, "finished", 2)


def classifier(config: Config) -> torch.nn.Module:
    return build_model(
        config.model.name, num_classes=CLASSES, image_size=SIZE, mean=MEAN, std=STD,
        width=config.model.width, depth=config.model.depth,
    )  # fmt: skip


def follow(config: Config, folder: RunFolder, **changes: Any) -> Tracker:
    made = Tracker(config, folder, {**ABOUT, **changes}, folder.path.parents[1], lambda _: None)
    made.start()
    return made


def provenance_of(run_id: str) -> dict[str, Any]:
    """Returns the artifact of a run."""
    return json.loads(Path(client().download_artifacts(run_id, PROVENANCE)).read_text())


def kept(folder: RunFolder) -> dict[str, Any]:
    """State of the delivery in a run's folder."""
    return json.loads(folder.tracking.read_text())


def deliver(config: Config, folder: RunFolder, status: str) -> Tracker:
    followed = follow(config, folder)
    assert followed.close(status, WAIT), followed.problem
    return followed


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_a_run_has_a_description_and_ends_with_its_status(
    config: Config, folder: RunFolder, status: str
) -> None:
    write_start(folder)
    write_epoch(folder, 1)
    run_id = deliver(config, folder, status).run_id
    run = client().get_run(run_id)
    assert (run.info.status, run.info.run_name) == (status, "mine")
    settings = flatten(json.loads(config.model_dump_json()))
    assert run.data.params == {key: str(value) for key, value in settings.items()}
    expected = {
        "raymi.recipe": "quickstart",
        "raymi.method": "NAMID (bounded)",
        "raymi.data": "digits",
        "raymi.threat": threat_text(config.attack.norm, config.attack.eps),
        "raymi.version": "0.1.0",
        "raymi.workers": "2",
        "raymi.device": "cpu",
    }
    assert {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")} == expected
    assert run.data.tags[RUN_ID] == "0123abcd"
    assert provenance_of(run_id) == {
        **ABOUT,
        "workers": 2,
        "device": "cpu",
        "torch": torch.__version__,
        "version": "0.1.0",
        "machine": "a good one, 2 cores",
        "parameters": {"classifier": 7},
    }
    assert "python -m raymi.train seed=3" in run.data.tags["mlflow.note.content"]
    inputs = {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert inputs == {"digits-train": "a" * 32, "digits-test": "b" * 32}
    assert [f.path for f in client().list_artifacts(run_id)] == [
        "config.json",
        "journal.jsonl",
        "provenance.json",
    ]


def test_shared_images_are_a_warning(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    run_id = deliver(config, folder, "KILLED").run_id
    assert "duplicates" not in provenance_of(run_id)
    assert "Warning" not in client().get_run(run_id).data.tags[NOTE]
    write_start(folder, duplicates={"test/train": 1})
    deliver(config, folder, "KILLED")
    text = "1 of 1 test images are also in train (equal pixels)"
    assert provenance_of(run_id)["duplicates"].startswith(text)
    assert f"**Warning:** {text}" in client().get_run(run_id).data.tags[NOTE]


def test_restarts_are_a_metric_and_a_line(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    write_epoch(folder, 1)
    write_start(folder)
    write(folder, "stopped", 1)
    write_start(folder)
    run_id = deliver(config, folder, "KILLED").run_id
    assert [value for _, value in history(run_id, "restarts")] == [1, 2]
    note = client().get_run(run_id).data.tags[NOTE]
    assert "Restarts: 2 (at step 0 after an interruption; at step 0 after a stop)." in note


def test_metrics_have_the_epoch_as_step(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    write_epoch(folder, 1, loss=2.5)
    write_epoch(folder, 2, loss=1.5)
    run_id = deliver(config, folder, "KILLED").run_id
    assert history(run_id, "train/loss") == [(1, 2.5), (2, 1.5)]
    assert history(run_id, "train/mi/natural") == [(1, 0.5), (2, 0.5)]
    assert history(run_id, "val/robust_acc") == [(1, 0.6), (2, 0.7)]
    assert history(run_id, "lr") == [(1, 0.1), (2, 0.1)]


def test_best_accuracy_only_rises_also_after_a_resume(config: Config, folder: RunFolder) -> None:
    def write_validated(epoch: int, phase: str = "classifier", **val: float) -> None:
        fields = {"train": {}, "lr": 0.1, "images_per_s": 100.0}
        write(folder, "epoch", epoch, phase=phase, val=val, **fields)

    write_validated(1, "pretraining", robust_acc=0.9)
    write_validated(2, robust_acc=0.5)
    write_validated(3, robust_acc=0.4)
    run_id = deliver(config, folder, "KILLED").run_id
    write_validated(4, robust_acc=0.3)
    write_validated(5, **{"robust_acc": 0.4, "averaged/robust_acc": 0.6})
    write_validated(6)
    deliver(config, folder, "KILLED")
    told = history(run_id, "val/best_robust_acc")
    assert told == [(2, 0.5), (3, 0.5), (4, 0.5), (5, 0.6), (6, 0.6)]


def test_earlier_phases_have_separate_metrics(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    for phase, step in (("pretraining", 20), ("estimators", 40), ("classifier", 60)):
        write(
            folder, "epoch", 1, phase=phase, global_step=step, train={"loss": step / 10}, val={},
            lr=0.1, images_per_s=100.0,
        )  # fmt: skip
    run_id = deliver(config, folder, "KILLED").run_id
    assert history(run_id, "pretraining/train/loss") == [(1, 2.0)]
    assert history(run_id, "estimators/train/loss") == [(1, 4.0)]
    assert history(run_id, "train/loss") == [(1, 6.0)]


def test_overfitting_gap_and_probes_are_metrics(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    write_evaluations(folder, config)
    write(folder, "probe", 2, which="best", estimates={"mi/natural_of_natural": 1.5})
    run_id = deliver(config, folder, "KILLED").run_id
    assert history(run_id, "test/robust_overfitting_gap") == [(2, pytest.approx(0.05))]
    assert history(run_id, "probe/mi/natural_of_natural") == [(2, 1.5)]


def test_events_are_delivered_while_the_run_is_running(config: Config, folder: RunFolder) -> None:
    followed = follow(config, folder)
    wait_until(lambda: followed.run_id is not None)
    assert client().get_run(followed.run_id).info.status == "RUNNING"
    write_epoch(folder, 1)
    wait_until(lambda: history(followed.run_id, "train/loss") == [(1, 1.5)])
    write_epoch(folder, 2)
    assert followed.close("KILLED", WAIT)
    assert len(history(followed.run_id, "train/loss")) == 2


def test_replayed_epochs_are_delivered_once(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    for epoch, loss in ((1, 3.0), (2, 2.0), (1, 30.0), (2, 20.0), (3, 1.0)):
        write_epoch(folder, epoch, loss)
        write_start(folder)
    run_id = deliver(config, folder, "KILLED").run_id
    assert history(run_id, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert len(client().get_run(run_id).inputs.dataset_inputs) == 2


def test_a_resumed_run_continues_its_delivery(config: Config, folder: RunFolder) -> None:
    write_epoch(folder, 1)
    first = deliver(config, folder, "KILLED").run_id
    write_epoch(folder, 1, loss=9.0)
    write_epoch(folder, 2)
    followed = follow(config, folder)
    wait_until(lambda: client().get_run(first).info.status == "RUNNING")
    assert followed.close("FAILED", WAIT)
    assert [run.info.run_id for run in runs()] == [first]
    assert history(first, "train/loss") == [(1, 1.5), (2, 1.5)]
    assert client().get_run(first).info.status == "FAILED"


def test_a_run_is_found_by_the_id_of_raymi(config: Config, folder: RunFolder) -> None:
    write_epoch(folder, 1)
    first = deliver(config, folder, "KILLED").run_id
    folder.tracking.unlink()
    assert deliver(config, folder, "KILLED").run_id == first
    assert len(runs()) == 1
    assert history(first, "train/loss") == [(1, 1.5)]


def test_another_run_gets_another_mlflow_run(
    config: Config, folder: RunFolder, tmp_path: Path
) -> None:
    deliver(config, folder, "KILLED")
    other = RunFolder(tmp_path / "runs" / "other")
    other.path.mkdir()
    other.write_config(config)
    assert follow(config, other, id="another").close("KILLED", WAIT)
    assert {run.info.run_name for run in runs()} == {"mine", "other"}


def test_another_store_gets_everything_from_the_beginning(
    config: Config,
    folder: RunFolder,
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_epoch(folder, 1)
    first = deliver(config, folder, "KILLED").run_id
    shutil.copy(empty_store, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    write_epoch(folder, 2)
    second = deliver(config, folder, "KILLED").run_id
    assert first != second
    assert history(second, "train/loss") == [(1, 1.5), (2, 1.5)]


@pytest.mark.parametrize(
    "call", ["search_runs", "create_run", "log_batch", "log_artifact", "log_inputs", "set_tag"]
)
def test_temporarily_refused_data_is_delivered_later_once(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    outage = Outage(monkeypatch, call)
    told: list[str] = []
    followed = Tracker(config, folder, ABOUT, folder.path.parents[1], told.append)
    followed.start()
    write_start(folder)
    write_epoch(folder, 1)
    wait_until(lambda: outage.failures >= 3)
    assert "ConnectionError" in (followed.problem or "")
    write_epoch(folder, 2)
    if call == "log_artifact":  # refused files do not block metrics
        wait_until(lambda: len(history(followed.run_id, "train/loss")) == 2)
    outage.over = True
    assert followed.close("KILLED", WAIT)
    assert followed.problem is None
    assert len(told) == 2
    assert "rejects data: ConnectionError: " in told[0]
    assert told[1] == "MLflow answers again"
    (run,) = runs()
    assert len(run.data.params) > 60
    assert run.data.tags["raymi.workers"] == "2"
    assert history(followed.run_id, "train/loss") == [(1, 1.5), (2, 1.5)]
    assert [f.path for f in client().list_artifacts(run.info.run_id)] == [
        "config.json",
        "journal.jsonl",
        "provenance.json",
    ]
    assert len(run.inputs.dataset_inputs) == 2


def test_an_unreachable_store_neither_blocks_nor_loses_data(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch, "search_runs")
    write_epoch(folder, 1)
    followed = follow(config, folder)
    assert followed.close("KILLED", timeout=0.3) is False
    followed.join(WAIT)
    assert not followed.is_alive()
    outage.over = True
    deliver(config, folder, "KILLED")
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert history(run.info.run_id, "train/loss") == [(1, 1.5)]


def test_a_store_that_does_not_answer_is_printed_without_its_password(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told: list[str] = []
    followed = Tracker(config, folder, ABOUT, folder.path.parents[1], told.append)
    followed.start()
    wait_until(lambda: bool(told))
    assert "127.0.0.1:9" in told[0]
    assert SECRET not in told[0] + (followed.problem or "")


def test_closing_does_not_wait_for_the_next_attempt(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (2 * WAIT, 2 * WAIT))
    outage = Outage(monkeypatch, "search_runs")
    followed = follow(config, folder)
    wait_until(lambda: outage.failures == 1)
    outage.over = True
    assert followed.close("KILLED", WAIT), "it would be too late after the next try"


def test_closing_gives_up_a_failing_store(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch, "search_runs")
    followed = follow(config, folder)
    assert followed.close("FINISHED", timeout=math.inf, failing=0.2) is False
    assert outage.failures


def test_an_earlier_status_does_not_count_as_delivery(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(config, folder, "KILLED")
    Outage(monkeypatch, "update_run")
    assert follow(config, folder).close("KILLED", timeout=0.2) is False


def test_non_finite_numbers_are_delivered(config: Config, folder: RunFolder) -> None:
    write_epoch(folder, 1, loss=float("inf"))
    write_epoch(folder, 2, loss=float("nan"))
    run_id = deliver(config, folder, "KILLED").run_id
    steps = [step for step, _ in history(run_id, "train/loss")]
    assert steps == [1, 2]


def finish(config: Config, folder: RunFolder) -> Tracker:
    write_start(folder)
    write_epoch(folder, 1)
    write_epoch(folder, 2)
    write_evaluations(folder, config)
    return deliver(config, folder, "FINISHED")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "MY_TOKEN"):
        monkeypatch.setenv(name, SECRET)


@pytest.mark.usefixtures("planted")
def test_a_finished_run_has_models_and_results_and_no_secrets(
    config: Config,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "mlflow.db").unlink()  # MLflow makes its tables, and would say so
    for name in ("mlflow", "alembic"):  # as importing mlflow leaves them
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    followed = finish(config, folder)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert "MLFLOW_TRACKING_URI" not in os.environ

    run = client().get_run(followed.run_id)
    assert run.info.status == "FINISHED"
    results = {
        "test/last/clean_acc": 0.95,
        "test/last/pgd40_acc": 0.55,
        "test/best/clean_acc": 0.95,
        "test/best/pgd40_acc": 0.6,
        "test/pgd40_acc": 0.6,  # of the model that is registered
        "test/robust_acc": 0.6,
    }
    assert results.items() <= run.data.metrics.items()
    note = run.data.tags["mlflow.note.content"]
    assert note == run_description(config, ABOUT, kept(folder)["evaluations"])
    assert "| best | 1 | 95.0% (88.8-97.8) | 60.0% (50.2-69.1) |" in note

    assert followed.models["best"] == "models:/raymi-digits/1"
    (version,) = client().search_model_versions("name = 'raymi-digits'")
    assert version.run_id == followed.run_id
    assert "60.0%" in version.description
    assert_models_give_the_logits_of_their_weights(config, folder, followed.models)
    models = client().search_logged_models([run.info.experiment_id])
    accuracies = {m.name: {a.key: a.value for a in m.metrics} for m in models}
    assert accuracies["best"]["test/pgd40_acc"] == 0.6
    assert accuracies["last"]["test/pgd40_acc"] == 0.55
    assert accuracies["last"]["test/num"] == 100
    shown = {m.name: json.loads(m.tags.get("mlflow.modelVersions", "[]")) for m in models}
    assert shown == {"best": [{"name": "raymi-digits", "version": "1"}], "last": []}
    images = {(a.dataset_name, a.dataset_digest) for m in models for a in m.metrics}
    assert images == {("digits-test", 32 * "b")}
    assert_nowhere(tmp_path, SECRET.encode())

    again = deliver(config, folder, "FINISHED")  # a finished run, resumed
    assert again.models == followed.models
    assert len(client().search_logged_models([run.info.experiment_id])) == 2
    assert len(client().search_model_versions("name = 'raymi-digits'")) == 1

    best = kept(folder)["model_ids"]["best"]
    other = client().create_run(run.info.experiment_id).info.run_id
    assert register_model(config, client(), other, best) == "models:/raymi-digits/2"


@pytest.mark.parametrize(
    ("net", "why"), [("branching_net", "data-dependent"), ("counting_net", r"x.size\(\)\[0\] == 2")]
)
def test_a_network_that_torch_cannot_export_leaves_weights_and_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], net: str, why: str
) -> None:
    config = build_config("quickstart", {"model": {"name": f"tiny_runs:{net}"}})
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.write_config(config)
    write_start(folder)
    write_evaluations(folder, config)
    told: list[str] = []
    followed = Tracker(config, folder, ABOUT, tmp_path, told.append)
    followed.start()
    assert followed.close("FINISHED", WAIT), followed.problem
    run = client().get_run(followed.run_id)
    for text in (*told, run.data.tags["mlflow.note.content"]):
        assert re.search(rf"torch.export cannot trace this model \(.*{why}", text)
    assert client().search_logged_models([run.info.experiment_id]) == []
    assert run.data.metrics["test/robust_acc"] == run.data.metrics["test/pgd40_acc"] == 0.6
    kept = {file.path for file in client().list_artifacts(followed.run_id)}
    assert {"best.safetensors", "last.safetensors"} <= kept
    assert "forward" not in capfd.readouterr().err, "torch prints no graph"


def assert_models_give_the_logits_of_their_weights(
    config: Config, folder: RunFolder, models: dict[str, str]
) -> None:
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    torch.manual_seed(9)
    x = torch.rand(5, 3, SIZE, SIZE)
    seen = []
    with store.use_store(client().tracking_uri), torch.no_grad():
        for which, uri in models.items():
            local = mlflow.artifacts.download_artifacts(uri)
            assert not [p for p in Path(local).rglob("*") if p.suffix in (".pkl", ".pth")]
            logits = mlflow.pytorch.load_model(uri)(x)
            model = classifier(config).eval()
            model.load_state_dict(load_file(folder.weights(which)))
            torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)
            beside = list(Path(local).rglob(f"{which}.safetensors"))
            assert [p.read_bytes() for p in beside] == [folder.weights(which).read_bytes()]
            seen.append(logits)
    assert not torch.allclose(*seen)


def assert_nowhere(folder: Path, secret: bytes) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"mlflow.db", "MLmodel", "config.json"} <= {path.name for path in files}
    assert [path for path in files if secret in path.read_bytes()] == []
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert secret.decode() not in "\n".join(database.iterdump())


def test_a_model_with_interrupted_logging_is_logged_once(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    write_evaluations(folder, config)
    run_id = deliver(config, folder, "KILLED").run_id
    place = client().get_run(run_id).info.experiment_id
    half = client().create_logged_model(place, name="last", source_run_id=run_id)
    whole = client().create_logged_model(place, name="best", source_run_id=run_id)
    client().finalize_logged_model(whole.model_id, "READY")
    deliver(config, folder, "FINISHED")
    models = {one.name: one for one in client().search_logged_models([place])}
    assert len(models) == len(client().search_logged_models([place])) == 2
    assert models["best"].model_id == whole.model_id, "its process died before it could say so"
    assert models["last"].model_id != half.model_id
    assert {one.status.value for one in models.values()} == {"READY"}
    accuracies = {m.name: {a.key: a.value for a in m.metrics} for m in models.values()}
    assert accuracies["best"]["test/pgd40_acc"] == 0.6


def test_a_run_with_refused_files_ends(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    outage = Outage(monkeypatch, "log_artifact")
    write_start(folder)
    write_epoch(folder, 1)
    followed = follow(config, folder)
    closing = threading.Thread(target=followed.close, args=("KILLED", WAIT))
    closing.start()
    wait_until(lambda: "KILLED" in [run.info.status for run in runs()])
    assert history(followed.run_id, "train/loss") == [(1, 1.5)]
    assert closing.is_alive(), "as data are undelivered"
    outage.over = True
    closing.join(WAIT)
    assert runs()[0].info.status == "KILLED"
    assert "journal.jsonl" in {one.path for one in client().list_artifacts(followed.run_id)}


def test_models_are_logged_once_if_registration_fails_first(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def log_model(*arguments: Any) -> str:
        calls.append(arguments[5]["which"])
        return f"m-{calls[-1]}"

    def register_model(_config: Config, _client: Any, _run: str, model_id: str) -> str:
        calls.append(f"register {model_id}")
        if len(calls) < 5:
            raise ConnectionError
        return "models:/mine/1"

    monkeypatch.setattr(tracked_run, "log_model", log_model)
    monkeypatch.setattr(tracked_run, "register_model", register_model)
    monkeypatch.setattr(tracked_run, "write_card", lambda client, model_id: None)
    write_start(folder)
    write_evaluations(folder, config)
    followed = deliver(config, folder, "FINISHED")
    assert calls == ["last", "best", *["register m-best"] * 3]
    assert followed.models == {"best": "models:/mine/1", "last": "models:/m-last"}
    assert deliver(config, folder, "FINISHED").models == followed.models
    assert len(calls) == 5


def test_the_store_is_the_users_or_a_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.how_to_open("sqlite:////a b/m.db") == (
        "mlflow ui --backend-store-uri 'sqlite:////a b/m.db'"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert store.tracking_uri(tmp_path) == "http://tracking:5000"
    assert store.how_to_open("http://tracking:5000") == "http://tracking:5000"


def test_a_deleted_experiment_is_restored(config: Config, folder: RunFolder) -> None:
    first = deliver(config, folder, "KILLED").run_id
    experiment = client().get_run(first).info.experiment_id
    client().delete_experiment(experiment)
    folder.tracking.unlink()
    deliver(config, folder, "KILLED")
    assert client().get_experiment(experiment).lifecycle_stage == "active"


def test_the_journal_is_only_read(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    write_epoch(folder, 1)
    before = folder.journal.read_bytes()
    deliver(config, folder, "KILLED")
    assert folder.journal.read_bytes() == before
    assert len(JournalReader(folder.journal).new_events()) == 2


def test_a_deleted_run_is_recreated(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    write_epoch(folder, 1)
    first = deliver(config, folder, "KILLED").run_id
    client().delete_run(first)
    write_epoch(folder, 2)
    second = deliver(config, folder, "KILLED").run_id
    assert second != first
    assert [step for step, _ in history(second, "train/loss")] == [1, 2]


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_deleted_meanwhile_is_recreated(config: Config, folder: RunFolder, what: str) -> None:
    write_start(folder)
    write_epoch(folder, 1)
    followed = follow(config, folder)
    wait_until(lambda: bool(runs()) and bool(history(runs()[0].info.run_id, "train/loss")))
    if what == "run":
        client().delete_run(followed.run_id)
    else:
        client().delete_experiment(runs()[0].info.experiment_id)
    write_epoch(folder, 2)
    assert followed.close("KILLED", WAIT), followed.problem
    (run,) = runs()
    assert run.info.run_id == followed.run_id
    assert history(run.info.run_id, "train/loss") == [(1, 1.5), (2, 1.5)]


def test_settings_changed_on_resume_do_not_block_the_delivery(
    config: Config, folder: RunFolder
) -> None:
    first = deliver(config, folder, "KILLED").run_id
    folder.tracking.unlink()  # so that everything is delivered again
    changed = config.model_copy(update={"limit": config.limit.model_copy(update={"hours": 2.0})})
    assert deliver(changed, folder, "KILLED").run_id == first


def test_a_resumed_run_stays_in_its_store_from_any_folder(
    config: Config, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_start(folder)
    first = deliver(config, folder, "KILLED")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    second = Tracker(config, folder, ABOUT, elsewhere)
    second.start()
    assert second.close("KILLED", WAIT)
    assert (second.uri, second.run_id) == (first.uri, first.run_id)
    assert not (elsewhere / "mlflow.db").exists()


def test_steps_are_delivered_once_with_their_index(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    journal = Journal(folder.journal)
    for step in (10, 20, 10, 20, 30):  # steps 10 and 20 were replayed
        loss = {"loss": float(step)}
        journal.write("step", phase="classifier", epoch=0, global_step=step, metrics=loss)
    journal.close()
    run_id = deliver(config, folder, "KILLED").run_id
    assert history(run_id, "train_steps/loss") == [(10, 10.0), (20, 20.0), (30, 30.0)]


@pytest.mark.parametrize("name", [pytest.param("a b é", marks=pytest.mark.exhaustive), "a%20b?x#y"])
def test_a_folder_with_any_name_has_its_own_store(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    home.mkdir()
    store.connect(store.tracking_uri(home)).search_experiments()
    assert (home / "mlflow.db").is_file()
    assert len(list(tmp_path.rglob("mlflow.db"))) == 2, "this one, and that of the other tests"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ann:pass@host:5000/x", "http://host:5000/x"),
        ("http://host:5000", "http://host:5000"),
        ("http://ann:p@ss/wd?x#y@host:5000", "http://host:5000"),
        ("http://ann:12/pass@host:5000", "http://host:5000"),
        ("ann:pass@host:5000", "host:5000"),
        ("http://token@[::1", "http://[::1"),
        ("postgresql://ann:pass@host/db?sslmode=on", "postgresql://host/db?sslmode=on"),
        ("mysql://host/db?user=ann&password=pass", "mysql://host/db?user=ann&password=..."),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dpass", "mssql+pyodbc:///?odbc_connect=..."),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
        ("sqlite:////a:b/c@d/mlflow.db", "sqlite:////a:b/c@d/mlflow.db"),
    ],
)
def test_passwords_in_an_address_are_hidden(uri: str, shown: str) -> None:
    assert store.without_password(uri) == shown
    assert "pass@" not in store.how_to_open(uri)
    error = store.error_line(ValueError(f"cannot reach {uri} by http://me:pass@proxy"), uri)
    assert not {"pass", "p@ss", "token", "12"} & set(re.findall(r"[\w@]+", error))


def test_an_address_with_an_unescaped_password_has_a_remedy() -> None:
    error = store.error_line(ValueError("no port 'a'"), "http://ann:a/b@host:5000")
    assert "%2F for /" in error
    assert "'a'" not in error, "parts of the password are taken for something else"


def test_a_run_stores_its_address_without_the_password(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = client()
    monkeypatch.setattr(store, "connect", lambda uri: there)

    def tracked(login: str) -> tracked_run.TrackedRun:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}@tracking:5000")
        return tracked_run.TrackedRun(config, folder, ABOUT, folder.path.parents[1])

    write_epoch(folder, 1)
    first = tracked(f"me:{SECRET}")
    first.deliver("KILLED")
    assert SECRET not in folder.tracking.read_text()
    again = tracked("me:another")
    assert again.run_id == first.run_id
    assert again.is_delivered("KILLED")
    assert again.uri == "http://me:another@tracking:5000"
    uri = kept(folder)["uri"]
    assert store.with_login(uri) == again.uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass@other:5000")
    assert store.with_login(uri) == uri, "not the login of another store"


def test_models_of_one_epoch_share_a_point_of_the_run(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    attack = {"norm": "linf", "eps": 8 / 255, "alpha": 2 / 255, "steps": 40}
    for which in ("last", "best"):  # the best epoch was the last one: the same model twice
        torch.manual_seed(0)
        save_file(classifier(config).state_dict(), folder.weights(which))
        write(
            folder, "evaluation", 2, which=which, of_epoch=2, attack=attack, clean=0.95,
            robust=0.5, num=100, chosen=which == "best", time=1e9 + (which == "best"),
        )  # fmt: skip
    write(folder, "finished", 2)
    run_id = deliver(config, folder, "FINISHED").run_id
    for metric, value in (("clean_acc", 0.95), ("pgd40_acc", 0.5), ("num", 100.0)):
        assert history(run_id, f"test/{metric}") == [(2, value)]
    run = client().get_run(run_id)
    models = client().search_logged_models([run.info.experiment_id])
    for model in models:
        assert {one.key: one.value for one in model.metrics}["test/clean_acc"] == 0.95
    assert sorted(model.name for model in models) == ["best", "last"]


def test_the_chosen_model_is_logged_at_the_latest_time() -> None:
    def evaluated(which: str, of_epoch: int, time: float) -> dict[str, Any]:
        chosen = which == "best"
        return {"which": which, "of_epoch": of_epoch, "time": time, "chosen": chosen}

    events = [
        ("last", 9, 1.0),
        ("best", 7, 2.0),
        ("last-averaged", 9, 3.0),
        ("best-averaged", 9, 4.0),
    ]
    times = metric_times({name: evaluated(name, *rest) for name, *rest in events})
    assert list(times)[-1] == "best"
    assert times["best"] > max(times["last"], times["last-averaged"])
    assert times["last-averaged"] == times["best-averaged"], "one model twice"
    assert times["last"] != times["last-averaged"], "averaged weights are another model"


def test_times_stay_in_order_if_the_clock_jumps_back(config: Config, folder: RunFolder) -> None:
    write_start(folder)
    first = deliver(config, folder, "KILLED")
    began = client().get_run(first.run_id).info.start_time
    ahead = began / 1000 + 100
    for epoch, time in ((1, 1e9), (2, ahead), (3, ahead - 60)):
        write(
            folder, "epoch", epoch, train={"loss": 1.0}, val={}, lr=0.1, images_per_s=1.0,
            time=time,
        )  # fmt: skip
    record = {"kind": "machine", "time": 1e9, "metrics": {"cpu_utilization_percentage": 1.0}}
    folder.machine_log(0).write_text(json.dumps(record) + "\n")
    deliver(config, folder, "KILLED")
    points = client().get_metric_history(first.run_id, "train/loss")
    assert [one.timestamp - began for one in points] == [0, 100_000, 100_000]
    (recorded,) = client().get_metric_history(first.run_id, "system/cpu_utilization_percentage")
    assert recorded.timestamp == began


def test_a_run_does_not_end_before_its_start_if_the_clock_jumps_back(
    config: Config, folder: RunFolder
) -> None:
    run_id = deliver(config, folder, "KILLED").run_id
    began = client().get_run(run_id).info.start_time
    store.end_run(client(), run_id, "FINISHED", when=1e9)
    run = client().get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("FINISHED", began)


def test_the_login_name_of_the_server_is_not_logged(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    run = client().get_run(finish(config, folder).run_id)
    for model in client().search_logged_models([run.info.experiment_id]):
        assert model.tags["mlflow.user"] == run.data.tags["mlflow.user"]
        assert model.tags["mlflow.source.name"] == ABOUT["command"]
    assert_nowhere(tmp_path, SECRET.encode())


@pytest.mark.parametrize("text", ["", "[1]", '{"uri": 3}', "{"])
def test_a_damaged_tracking_json_is_named_and_can_be_removed(
    config: Config, folder: RunFolder, text: str
) -> None:
    first = deliver(config, folder, "KILLED").run_id
    folder.tracking.write_text(text)
    with pytest.raises(UserError, match=rf"{folder.tracking} is damaged .*: remove it"):
        follow(config, folder)
    folder.tracking.unlink()
    assert deliver(config, folder, "KILLED").run_id == first
