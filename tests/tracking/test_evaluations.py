"""Evaluations in a real MLflow store with runs and logged models."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_runs
import torch
from mlflow_store import client, history, in_folder, runs
from rich.console import Console

from raymi import evaluate
from raymi.attacks.catalogue import ATTACKS, Threat
from raymi.attacks.suites import SUITES
from raymi.commands.evaluate.command import send_to_mlflow
from raymi.commands.evaluate.plan import EvaluationPlan
from raymi.commands.find_model import LocatedModel, find_model_source
from raymi.evaluation.finding import Finding
from raymi.evaluation.report import Report
from raymi.evaluation.summary import Robustness
from raymi.evaluation.transfer import transfer_name
from raymi.tracking import store
from raymi.tracking.description import (
    NOTE,
    evaluation_section,
    evaluations_in,
    with_evaluation,
)
from raymi.tracking.evaluations import LoggedModelRef, log_evaluation
from raymi.tracking.metric_names import AUTOATTACK, metric_prefix, rounded
from raymi.tracking.model_card import CARD
from raymi.tracking.provenance import PROVENANCE

mlflow = pytest.importorskip("mlflow")

SECRET = "s3cr3t-of-this-test"
COMMAND = "python -m raymi.evaluate model=mine"
IMAGES = "d" * 64
LINF = Threat("linf", 8 / 255)
NUM = 40
OUTPUTS = Finding("outputs", False, "the largest logit is 12")
MASKED = Finding("steps", True, "FGSM breaks more than PGD")
NAMES = (
    "pgd-20", "pgd-20@2eps", "pgd-20@2.5eps", "pgd-20@25eps", "pgd-20@any", "pgd-20x2",
    "pgd-40-from-vgg.19", "pgd-40-from-vgg_19", "pgd-40-from-vgg-19", "pgd-40@2eps-from-vgg.19",
)  # fmt: skip


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder with a copy of the store of `finished`, and nothing else."""
    shutil.copy(finished / "mlflow.db", tmp_path)
    for told_before in finished.glob("mlruns/*/artifacts/evaluations"):
        shutil.rmtree(told_before)
    in_folder(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def mine(finished: Path, home: Path) -> LocatedModel:
    """The chosen classifier of the run."""
    return find_model_source("mine", tiny_runs.tiny_config({"out": str(finished / "runs")}))


def place_of(found: LocatedModel, home: Path) -> LoggedModelRef:
    return LoggedModelRef(store.tracking_uri(home), found.run_id, found.model_id, found.variant)


def report_of(
    folder: Path,
    names: tuple[str, ...] = ("pgd-40",),
    findings: tuple[Finding, ...] = (OUTPUTS,),
    *,
    threat: Threat = LINF,
    model: str = "e" * 64,
    seed: int = 0,
) -> Report:
    """Report of an evaluation: 30 of 40 correct, and under the attacks 20, 19, 18..."""
    right = {"clean": 30} | {name: 20 - k % 20 for k, name in enumerate(names)}
    results = tuple(Robustness(name, num, NUM, ()) for name, num in right.items())
    return Report(
        name="mine-best",
        data="digits-test",
        num=NUM,
        protocol={
            "model": model, "images": IMAGES, "seed": seed,
            "threat": {"norm": threat.norm, "eps": threat.eps},
        },
        attacks={},
        folder=folder,
        results=results,
        findings=findings,
        robust={},
    )  # fmt: skip


def log(report: Report, place: LoggedModelRef, home: Path) -> str:
    table = home / "outcomes.parquet"
    pq.write_table(pa.table({"sample": np.arange(NUM)}), table)
    return log_evaluation(
        report, place, command=COMMAND, experiment="raymi", home=home, files=[table]
    )


def values(run_id: str, metric: str) -> list[float]:
    return [value for _, value in history(run_id, metric)]


def state() -> list[tuple[Any, ...]]:
    """Everything that evaluations change in a store."""
    found: list[tuple[Any, ...]] = []
    for run in runs():
        lengths = {m: len(values(run.info.run_id, m)) for m in run.data.metrics}
        inputs = [one.dataset.digest for one in run.inputs.dataset_inputs]
        found.append((run.info.run_id, run.info.status, lengths, run.data.tags, inputs))
    for model in models():
        metrics = [(one.key, one.value, one.step) for one in model.metrics or ()]
        found.append((model.model_id, sorted(metrics), model.tags))
    return found


def models(only: str | None = None) -> list[Any]:
    ids = [one.experiment_id for one in client().search_experiments()]
    return list(client().search_logged_models(ids, only))


def artifacts(run_id: str, path: str) -> set[str]:
    return {one.path for one in client().list_artifacts(run_id, path)}


def test_accuracies_are_metrics_of_run_and_model(mine, home):
    report = report_of(home)
    run_id = log(report, place_of(mine, home), home)
    assert run_id == mine.run_id
    run = client().get_run(run_id)
    low, high = map(rounded, report.results[1].interval)
    expected = {
        "eval/digits-test/linf_8_255/clean_acc": 0.75,
        "eval/digits-test/linf_8_255/pgd-40_acc": 0.5,
        "eval/digits-test/linf_8_255/pgd-40_low95": low,
        "eval/digits-test/linf_8_255/pgd-40_high95": high,
        "eval/digits-test/linf_8_255/num": 40.0,
        "eval/digits-test/linf_8_255/doubtful_checks": 0.0,
    }
    assert expected.items() <= run.data.metrics.items()
    assert run.info.status == "FINISHED"
    model = client().get_logged_model(mine.model_id)
    of_model = {one.key: one for one in model.metrics if one.key.startswith("eval/")}
    assert expected.items() <= {key: one.value for key, one in of_model.items()}.items()
    assert {(one.dataset_name, one.dataset_digest) for one in of_model.values()} == {
        ("digits-test", IMAGES[:32])
    }
    (better,) = models("metrics.`eval/digits-test/linf_8_255/pgd-40_acc` > 0.49")
    assert better.model_id == mine.model_id
    assert not models("metrics.`eval/digits-test/linf_8_255/pgd-40_acc` > 0.51")


def test_means_stand_for_their_details(mine, home):
    report = report_of(home, ("corruption-fog-1", "corruptions"))
    clean, fog, mean = report.results
    note = "corruptions: mean error 50.0% over 1 sets of images"
    results = (clean, replace(fog, detail=True), replace(mean, note=note))
    report = replace(report, results=results)
    log(report, place_of(mine, home), home)
    metrics = client().get_run(mine.run_id).data.metrics
    prefix = "eval/digits-test/linf_8_255/"
    assert metrics[f"{prefix}corruptions_acc"] == 19 / 40
    assert not any(name.startswith(f"{prefix}corruption-fog-1") for name in metrics)
    section = evaluation_section(report, COMMAND)
    assert f"| corruptions | 47.5% | 32.9-62.5% |\n\n{note}." in section
    assert "fog" not in section


def test_the_data_set_is_one_input_of_the_run(mine, home):
    place = place_of(mine, home)
    before = client().get_run(mine.run_id).inputs.dataset_inputs
    for names in (("pgd-40",), ("pgd-40", "fgsm")):
        log(report_of(home, names), place, home)
    inputs = client().get_run(mine.run_id).inputs.dataset_inputs
    assert len(inputs) == len(before) + 1
    (ours,) = [one for one in inputs if one.dataset.digest == IMAGES[:32]]
    assert ours.dataset.name == "digits-test"
    assert {tag.key: tag.value for tag in ours.tags} == {"mlflow.data.context": "eval"}


def test_autoattack_in_the_threat_of_the_training_is_a_column(mine, home):
    place, training = place_of(mine, home), tiny_runs.tiny_config().attack
    log(report_of(home, ("autoattack",), threat=Threat("l2", 0.5)), place, home)
    assert AUTOATTACK not in client().get_run(mine.run_id).data.metrics
    own = Threat(training.norm, training.eps)
    log(report_of(home, ("pgd-40", "autoattack"), threat=own), place, home)
    assert values(mine.run_id, AUTOATTACK) == [19 / 40]


def test_signs_of_false_robustness_are_tags_of_the_model(mine, home):
    log(report_of(home, findings=(OUTPUTS, MASKED)), place_of(mine, home), home)
    expected = {
        "eval/digits-test/linf_8_255/false_robustness": "steps",
        "eval/digits-test/linf_8_255/check/outputs": "ok: the largest logit is 12",
        "eval/digits-test/linf_8_255/check/steps": "doubtful: FGSM breaks more than PGD",
    }
    run = client().get_run(mine.run_id)
    assert not expected.keys() & run.data.tags.keys()
    assert run.data.tags["raymi.doubtful"] == "yes"
    assert len([tag for tag in run.data.tags if tag.startswith("raymi.")]) == 8
    assert expected.items() <= client().get_logged_model(mine.model_id).tags.items()
    assert run.data.metrics["eval/digits-test/linf_8_255/doubtful_checks"] == 1
    (doubtful,) = models("tags.`eval/digits-test/linf_8_255/false_robustness` = 'steps'")
    assert doubtful.model_id == mine.model_id


def test_absent_signs_are_logged_only_if_checked(mine, home):
    place = place_of(mine, home)
    log(report_of(home, findings=()), place, home)
    tags = client().get_logged_model(mine.model_id).tags
    assert "eval/digits-test/linf_8_255/false_robustness" not in tags
    assert "raymi.doubtful" not in client().get_run(mine.run_id).data.tags
    log(report_of(home), place, home)
    assert client().get_run(mine.run_id).data.tags["raymi.doubtful"] == "no"
    tags = client().get_logged_model(mine.model_id).tags
    assert (
        tags["eval/digits-test/linf_8_255/false_robustness"]
        == "no sign of false robustness in 1 checks"
    )
    assert values(mine.run_id, "eval/digits-test/linf_8_255/clean_acc") == [0.75]


def test_report_and_outcomes_are_artifacts(mine, home):
    report = report_of(home)
    run_id = log(report, place_of(mine, home), home)
    (folder,) = artifacts(run_id, "evaluations")
    assert folder.startswith("evaluations/mine-best-")
    expected = {f"{folder}/report.json", f"{folder}/outcomes.parquet"}
    assert artifacts(run_id, folder) == expected
    path = client().download_artifacts(run_id, f"{folder}/report.json", str(home))
    assert json.loads(Path(path).read_text()) == json.loads(json.dumps(report.as_json()))


def test_the_description_has_results_and_command(mine, home):
    place = place_of(mine, home)
    before = client().get_run(mine.run_id).data.tags[NOTE]
    log(report_of(home, findings=()), place, home)
    log(report_of(home, ("pgd-40", "fgsm"), (OUTPUTS, MASKED)), place, home)
    note = client().get_run(mine.run_id).data.tags[NOTE]
    assert note.startswith(before)
    title = "### mine-best: 40 images of digits-test, L_inf eps 8/255"
    assert note.count(title) == 1, "it replaces the earlier section"
    assert "Signs of false robustness: steps (FGSM breaks more than PGD)" in note
    assert "| fgsm | 47.5% | 32.9-62.5% |" in note
    assert f"```\n{COMMAND}\n```" in note
    log(report_of(home, ("fgsm-2",)), place, home)
    assert client().get_run(mine.run_id).data.tags[NOTE].count(title) == 2, "of other attacks"


def test_a_new_description_keeps_the_evaluations():
    told = evaluation_section(report_of(Path("ledger")), COMMAND)
    for before in ("", "the run\n\n| model | clean |"):
        note = with_evaluation(before, told)
        assert evaluations_in(note).strip() == told
        assert with_evaluation(note, told) == note
    assert evaluations_in("the run") == ""


def test_the_model_card_has_accuracies_and_doubts(mine, home):
    log(report_of(home, findings=(OUTPUTS, MASKED)), place_of(mine, home), home)
    place = client().get_logged_model(mine.model_id).artifact_location
    card = Path(mlflow.artifacts.download_artifacts(f"{place}/{CARD}")).read_text()
    assert "| 40 of digits-test | L_inf eps 8/255 | pgd-40 | 50.0% (35.2-64.8) |" in card
    assert "- steps (digits-test/linf_8_255): doubtful: FGSM breaks more than PGD" in card
    assert "Warning" not in card
    (version,) = client().search_model_versions("name = 'tiny'")
    assert "pgd-40 | 50.0%" in version.description


def test_the_model_card_warns_of_shared_images(mine, home):
    warning = "7 of 40 test images are also in train"
    client().log_dict(mine.run_id, {"duplicates": warning}, PROVENANCE)
    log(report_of(home), place_of(mine, home), home)
    place = client().get_logged_model(mine.model_id).artifact_location
    card = Path(mlflow.artifacts.download_artifacts(f"{place}/{CARD}")).read_text()
    limits = card.partition("## Limits")[2].partition("##")[0]
    assert "**Warning:** 7 of 40 test images are also in train." in limits


def test_logging_again_adds_nothing(mine, home):
    place, report = place_of(mine, home), report_of(home, findings=(OUTPUTS, MASKED))
    log(report, place, home)
    before = state()
    assert log(report, place, home) == mine.run_id
    assert log(report_of(home, ()), place, home) == mine.run_id, "less of the same"
    assert state() == before


@pytest.mark.parametrize("call", ["log_metric", "set_logged_model_tags", "log_text", "set_tag"])
def test_interrupted_logging_is_completed_without_duplicates(mine, home, monkeypatch, call):
    place = place_of(mine, home)
    reports = (report_of(home), report_of(home, ("fgsm",)), report_of(home, seed=1))
    real, calls = getattr(mlflow.MlflowClient, call), itertools.count(1)

    def fails_the_third_time(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 3:
            raise ConnectionError
        return real(*args, **kwargs)

    def tell() -> None:
        for report in reports:
            log(report, place, home)

    monkeypatch.setattr(mlflow.MlflowClient, call, fails_the_third_time)
    with pytest.raises(ConnectionError):
        tell()
    tell()
    prefix = "eval/digits-test/linf_8_255/"
    assert len(values(mine.run_id, f"{prefix}pgd-40_acc")) == 2, "of two questions"
    assert len(values(mine.run_id, f"{prefix}fgsm_acc")) == 1


def test_only_new_results_of_a_report_are_added(mine, home):
    place = place_of(mine, home)
    log(report_of(home), place, home)
    log(report_of(home, ("pgd-40", "fgsm")), place, home)
    prefix = "eval/digits-test/linf_8_255/"
    for name, value in {"clean": 0.75, "pgd-40": 0.5, "fgsm": 19 / 40}.items():
        assert values(mine.run_id, f"{prefix}{name}_acc") == [value]
    assert values(mine.run_id, f"{prefix}num") == [40]
    (folder,) = artifacts(mine.run_id, "evaluations")
    path = client().download_artifacts(mine.run_id, f"{folder}/report.json", str(home))
    assert len(json.loads(Path(path).read_text())["results"]) == 3


def test_a_report_of_other_attacks_keeps_the_earlier_one(mine, home):
    place = place_of(mine, home)
    log(report_of(home, ("pgd-40",)), place, home)
    log(report_of(home, ("fgsm",)), place, home)
    folders = artifacts(mine.run_id, "evaluations")
    assert len(folders) == 2
    before = state()
    log(report_of(home, ("fgsm", "pgd-40")), place, home)
    assert state() == before


def test_another_protocol_is_another_evaluation(mine, home):
    place = place_of(mine, home)
    for seed in (0, 1):
        log(report_of(home, seed=seed), place, home)
    assert len(values(mine.run_id, "eval/digits-test/linf_8_255/pgd-40_acc")) == 2
    log(report_of(home, threat=Threat("l2", 0.5)), place, home)
    metrics = client().get_run(mine.run_id).data.metrics
    assert metrics["eval/digits-test/l2_0.5/pgd-40_acc"] == 0.5
    assert len(values(mine.run_id, "eval/digits-test/linf_8_255/pgd-40_acc")) == 2


def test_a_model_that_was_not_chosen_has_separate_metrics(mine, home, finished):
    other = "last" if mine.source.name.endswith("best") else "best"
    found = find_model_source(
        "mine", tiny_runs.tiny_config({"out": str(finished / "runs")}), which=other
    )
    assert (mine.variant, found.variant) == (None, other)
    log(report_of(home), place_of(mine, home), home)
    log(report_of(home, model="f" * 64), place_of(found, home), home)
    assert values(mine.run_id, "eval/digits-test/linf_8_255/pgd-40_acc") == [0.5]
    assert values(mine.run_id, f"eval/digits-test/linf_8_255/{other}/pgd-40_acc") == [0.5]
    (with_it,) = models(f"metrics.`eval/digits-test/linf_8_255/{other}/pgd-40_acc` > 0")
    assert with_it.model_id == found.model_id != mine.model_id


def test_an_unknown_classifier_gets_one_evaluation_run(home):
    place = LoggedModelRef(store.tracking_uri(home))
    before = {run.info.run_id for run in runs()}
    first = log(report_of(home), place, home)
    assert first not in before
    told = state()
    assert log(report_of(home), place, home) == first
    assert state() == told
    assert log(report_of(home, ("pgd-40", "fgsm")), place, home) == first
    assert {run.info.run_id for run in runs()} == {*before, first}
    run = client().get_run(first)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "evaluation of mine-best")
    assert run.data.metrics["eval/digits-test/linf_8_255/fgsm_acc"] == 19 / 40
    assert client().get_experiment(run.info.experiment_id).name == "raymi"
    assert log(report_of(home, model="f" * 64), place, home) != first


def test_an_evaluation_run_is_never_a_training_run(mine, home):
    """A copy of a run's weights has the same digest, and so the same protocol."""
    client().update_run(mine.run_id, status="RUNNING")
    log(report_of(home), place_of(mine, home), home)
    own = log(report_of(home), LoggedModelRef(store.tracking_uri(home)), home)
    assert own != mine.run_id
    assert client().get_run(mine.run_id).info.status == "RUNNING"


def test_a_deleted_run_counts_as_none(mine, home):
    client().delete_run(mine.run_id)
    client().delete_logged_model(mine.model_id)
    own = log(report_of(home), place_of(mine, home), home)
    assert own != mine.run_id
    assert client().get_run(own).info.status == "FINISHED"
    gone = LoggedModelRef(store.tracking_uri(home), "0" * 32, "m-" + "0" * 32)
    assert log(report_of(home), gone, home) == own


def test_a_logged_model_without_a_run_gets_metrics(home):
    example = np.full((2, 3, 8, 8), 0.5, dtype=np.float32)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)).eval()
    with store.use_store(store.tracking_uri(home)):
        info = mlflow.pytorch.log_model(
            net, name="theirs", input_example=example, pip_requirements=["torch"],
            serialization_format="pt2",
        )  # fmt: skip
    found = find_model_source(f"models:/{info.model_id}", tiny_runs.tiny_config())
    assert found.run_id is None
    log(report_of(home), place_of(found, home), home)
    (model,) = models("metrics.`eval/digits-test/linf_8_255/theirs/pgd-40_acc` = 0.5")
    assert model.model_id == info.model_id


def test_attack_names_are_valid_and_distinct_in_mlflow(mine, home):
    reported = {name for names in SUITES.values() for name in names}
    long = tuple(transfer_name("pgd-40@2eps", 300 * "n" + end, "d" * 64) for end in "ab")
    names = tuple(dict.fromkeys([*NAMES, *long, *sorted(reported | set(ATTACKS))]))
    log(report_of(home, names), place_of(mine, home), home)
    metrics = client().get_run(mine.run_id).data.metrics
    told = {k: v for k, v in metrics.items() if re.match(r"eval/.*_acc$", k)}
    assert len(told) == len(names) + 1
    assert (
        metrics["eval/digits-test/linf_8_255/pgd-20_2eps_acc"]
        == (20 - names.index("pgd-20@2eps")) / NUM
    )
    before = state()
    log(report_of(home, names), place_of(mine, home), home)
    assert state() == before


def test_any_model_name_is_valid_in_a_metric(home):
    prefix = metric_prefix(report_of(home), "of others, ä & co " + 300 * "n")
    assert re.fullmatch(r"eval/digits-test/linf_8_255/of_others__[\w-]{,100}/", prefix, re.ASCII)


def test_long_texts_are_cut_for_tags(mine, home):
    long = Finding("steps", True, 30_000 * "x")
    log(report_of(home, findings=(long,)), place_of(mine, home), home)
    tags = client().get_logged_model(mine.model_id).tags
    text = tags["eval/digits-test/linf_8_255/check/steps"]
    assert len(text) == 5000
    assert text.startswith("doubtful: xxx")
    assert text.endswith("x...")


@pytest.mark.parametrize(
    "uri", [f"http://me:{SECRET}@127.0.0.1:9", "sqlite:////proc/nobody/mlflow.db", "nonsense://x"]
)
def test_a_store_that_does_not_answer_prints_one_line(home, capsys, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(Exception):  # noqa: B017 any error of MLflow
        log(report_of(home), LoggedModelRef(uri), home)
    said = tracked(home, LocatedModel(source=None))
    (line,) = said.splitlines()
    assert "did not take the evaluation of mine-best: " in line
    assert line.endswith("nothing is lost, deliver it with: python -m raymi.evaluate model=mine")
    assert SECRET not in said + "".join(capsys.readouterr())


def tracked(home: Path, *found: LocatedModel) -> str:
    """Lines about MLflow that `raymi.evaluate` prints."""
    (home / "outcomes.parquet").write_bytes(b"outcomes")
    reports = [report_of(home, model=str(k) * 64) for k, _ in enumerate(found)]
    plan = SimpleNamespace(
        targets=[SimpleNamespace(model=one) for one in found],
        request=SimpleNamespace(command="python -m raymi.evaluate model=mine"),
        config=tiny_runs.tiny_config(),
        data="digits-test",
    )
    console = Console(highlight=False, width=80)
    with console.capture() as shown:
        send_to_mlflow(console, _as_plan(plan), reports)
    return shown.get()


def _as_plan(plan: Any) -> EvaluationPlan:
    return plan


def test_an_unreachable_store_does_not_stop_the_other_models(mine, home):
    away = replace(mine, uri=f"http://me:{SECRET}@127.0.0.1:9")
    here = replace(mine, uri=store.tracking_uri(home))
    first, second = tracked(home, away, here).splitlines()
    assert "MLflow at http://127.0.0.1:9 did not take" in first
    assert SECRET not in first
    uri = store.tracking_uri(home)
    told = f"MLflow run of mine-best  {mine.run_id}  (mlflow ui --backend-store-uri {uri})"
    assert second == told


@pytest.mark.slow
def test_the_command_logs_to_mlflow_and_succeeds_without_it(home, monkeypatch, capsys):
    (home / "nets.py").write_text(
        "import torch\n"
        "def net(num_classes, image_size):\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(\n"
        "        torch.nn.Flatten(), torch.nn.Linear(3 * image_size**2, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(home))
    words = ["model=nets:net", "data.name=digits", "samples=40", "suite=quick", "checks=0"]
    words += ["workers=1"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:9")
    assert evaluate.main(words) == 0
    ended = capsys.readouterr()
    assert ended.out.count("did not take the evaluation of nets-net") == 1
    assert SECRET not in ended.out + ended.err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert evaluate.main(words) == 0
    assert "MLflow run of nets-net  " in capsys.readouterr().out
    (own,) = [run for run in runs() if run.info.run_name == "evaluation of nets-net"]
    assert own.info.status == "FINISHED"
    assert own.data.metrics["eval/digits-test-40/linf_8_255/num"] == 40
    (folder,) = artifacts(own.info.run_id, "evaluations")
    path = client().download_artifacts(own.info.run_id, f"{folder}/outcomes.parquet", str(home))
    rows = pq.read_table(path).to_pylist()
    assert sum(row["attack"] == "clean" for row in rows) == 40
