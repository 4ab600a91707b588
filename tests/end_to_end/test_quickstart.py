"""The quickstart: real Ray, real MLflow, real images, and a Ray of its own."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from raymi_command import environment, events, succeed
from undisturbed import undisturbed

from raymi import train
from raymi.tracking.metric_names import rounded

pytestmark = [pytest.mark.slow, pytest.mark.ray]

EPOCHS = 5
README = Path(__file__).parents[2] / "README.md"
SECRET = "s3cr3t-of-a-user"
PLANTED = dict.fromkeys(
    ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"),
    SECRET,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, empty before, in which the quickstart has run for a third of its epochs."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = ("name=seed0", f"epochs={EPOCHS}")
    (folder / "output.txt").write_text(succeed(folder, *words, **PLANTED))
    return folder


def results(folder: Path, which: str) -> dict:
    (result,) = (event for event in events(folder, "evaluation") if event["which"] == which)
    assert result["attack"]["steps"] == 40
    return result


def test_a_third_of_the_quickstart_is_robust_and_accurate(home: Path) -> None:
    for which in ("best", "last"):
        result = results(home / "runs" / "seed0", which)
        assert result["robust"] >= 0.40
        assert result["clean"] >= 0.85


@pytest.mark.exhaustive
def test_the_quickstart_has_the_results_of_the_readme(tmp_path: Path) -> None:
    output = succeed(tmp_path, "name=seed0")
    epochs = [line for line in output.splitlines() if "/15" in line and "%" in line]
    assert len(epochs) == 15, "one line for each epoch"
    for which in ("best", "last"):
        result = results(tmp_path / "runs" / "seed0", which)
        assert result["robust"] >= 0.60
        assert result["clean"] >= 0.95


@pytest.mark.exhaustive
def test_means_over_three_more_seeds_are_robust_and_accurate(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed{seed}" for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, start=1):
        folder.mkdir()
        undisturbed(folder, f"seed={seed}")
    for which in ("best", "last"):
        found = [results(folder, which) for folder in folders]
        assert statistics.mean(result["robust"] for result in found) >= 0.60
        assert statistics.mean(result["clean"] for result in found) >= 0.95


@pytest.mark.exhaustive
def test_undefended_training_falls_below_a_fifth_at_the_same_radius(tmp_path: Path) -> None:
    words = ("attack.steps=0", "attack.start=image", "mi.weight=0", "epochs=8")
    undisturbed(tmp_path, *words)
    # "best" is the most robust epoch, which here is a hardly trained one.
    last = results(tmp_path, "last")
    assert last["clean"] >= 0.95
    assert last["robust"] < 0.20


def test_two_workers_and_both_estimators_took_part(home: Path) -> None:
    (start,) = events(home / "runs" / "seed0", "start")
    assert start["workers"] == 2
    assert start["parameters"]["estimators"] > 0
    last = events(home / "runs" / "seed0", "epoch")[-1]["train"]
    assert last["mi/natural"] > 1.0, "the natural estimator has learned"
    assert last["mi/weight"] > 0


def test_the_readme_shows_the_output_of_the_quickstart(home: Path) -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    printed = {_without_numbers(line) for line in (home / "output.txt").read_text().splitlines()}
    lines = [_without_numbers(line) for line in shown.splitlines() if line != "..."]
    assert [line for line in lines if line not in printed] == []


def _without_numbers(line: str) -> str:
    """Returns a line of output without what differs between runs: paths, numbers and spaces."""
    line = re.sub(r"(?<=[ :/])/\S*/", "/", line).removesuffix("  best")
    return re.sub(r"\s+", " ", re.sub(r"-?\b[0-9a-f]{32}\b|-?\d+(?:\.\d+)?", "#", line))


def test_the_closing_table_names_all_results(home: Path) -> None:
    output = (home / "output.txt").read_text()
    for expected in ("best", "last", "PGD-40", "models:/raymi-digits/1", "mlflow ui", "seed0"):
        assert expected in output
    assert "\x1b" not in output, "no escape codes where stdout is no terminal"
    epochs = [line for line in output.splitlines() if f"/{EPOCHS}" in line and "%" in line]
    assert len(epochs) == EPOCHS, "one line for each epoch"
    for noise in ("INFO", "(pid=", "Traceback", "Warning"):
        assert noise not in output


def test_mlflow_has_the_run_with_curves_and_registered_model(home: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raymi")
    (seed0,) = client.search_runs([experiment.experiment_id])
    assert (seed0.info.run_name, seed0.info.status) == ("seed0", "FINISHED")
    history = client.get_metric_history(seed0.info.run_id, "val/robust_acc")
    assert [metric.step for metric in history] == list(range(1, EPOCHS + 1))
    assert {v.version for v in client.search_model_versions("name='raymi-digits'")} == {1}
    event = next(e for e in events(home / "runs" / "seed0", "evaluation") if e["which"] == "best")
    assert seed0.data.metrics["test/best/pgd40_acc"] == rounded(event["robust"])


def test_registered_model_classifies_without_pickle(home: Path) -> None:
    code = """
import json, mlflow, torch
from raymi.data import load_splits
from raymi.data.augment import to_unit
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pytorch.load_model("models:/raymi-digits/1")
test = load_splits("digits", image_size=16, val_fraction=0.15).test
right = model(to_unit(test.images)).argmax(dim=1) == test.labels
print(json.dumps(right.float().mean().item()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    best = next(e for e in events(home / "runs" / "seed0", "evaluation") if e["which"] == "best")
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(best["clean"], abs=1e-6)


def test_no_secret_of_the_environment_is_kept_or_shown(home: Path) -> None:
    assert SECRET not in (home / "output.txt").read_text()
    files = [path for path in home.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"mlflow.db", "run.json", "MLmodel", "MODEL_CARD.md", "journal.jsonl"} <= names
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_the_mlflow_run_has_tags_params_metrics_data_sets_and_description(home: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raymi")
    (run,) = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'seed0'")
    tags = {"recipe", "method", "data", "threat", "version", "workers", "device"}
    shown = {tag for tag in run.data.tags if not tag.startswith("mlflow.")}
    assert shown == {f"raymi.{tag}" for tag in tags}
    facts = {"command", "git_commit", "version", "python", "platform", "torch", "ray", "mlflow"}
    facts |= {"recipe", "workers", "device", "machine", "parameters"}
    provenance = Path(client.download_artifacts(run.info.run_id, "provenance.json"))
    assert facts - _without_git(home) <= set(json.loads(provenance.read_text()))
    assert (
        run.data.tags["mlflow.source.name"] == f"python -m raymi.train name=seed0 epochs={EPOCHS}"
    )
    assert {"seed", "attack.eps", "mi.balance", "optim.lr"} <= set(run.data.params)
    metrics = {"train/loss", "val/clean_acc", "val/robust_acc", "val/mi/natural_of_adversarial"}
    metrics |= {"test/best/pgd40_acc", "test/last/pgd40_acc", "test/robust_overfitting_gap"}
    metrics |= {"images_per_s", "lr", "system/cpu_utilization_percentage"}
    assert metrics <= set(run.data.metrics)
    sets = {one.dataset.name: one.dataset.digest for one in run.inputs.dataset_inputs}
    assert set(sets) == {"digits-train", "digits-val", "digits-test"}
    assert len(set(sets.values())) == 3
    note = run.data.tags["mlflow.note.content"]
    assert f"python -m raymi.train name=seed0 epochs={EPOCHS}" in note
    assert "| best |" in note


def _without_git(home: Path) -> set[str]:
    """Returns the tag that is missing if the tests run from an archive, without a commit."""
    about = json.loads((home / "runs" / "seed0" / "run.json").read_text())
    return set() if "git_commit" in about else {"git_commit"}


def test_a_finished_run_has_nothing_left_to_continue(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert train.main(["resume=seed0"]) == 0
    assert "PGD-40" in capsys.readouterr().out
    assert len(events(home / "runs" / "seed0", "epoch")) == EPOCHS
