"""`python -m raymi.select` on real stores: models that were trained, evaluated and registered."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from mlflow_server import Server
from mlflow_store import Outage, client, in_folder, runs

from raymi import select
from raymi.attacks.suites import Ensemble, find_attack
from raymi.commands.find_model import find_model_source
from raymi.evaluation.blocks import CLEAN, Outcome, Step
from raymi.evaluation.finding import Finding
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.evaluation.report import Report
from raymi.evaluation.summary import robust_samples, summarise
from raymi.tracking import store
from raymi.tracking.evaluations import LoggedModelRef, log_evaluation

mlflow = pytest.importorskip("mlflow")

pytestmark = pytest.mark.slow

NUM = 200
OF_TRAINING = "pgd-2-of-training"
MASKED = Finding("steps", True, "FGSM breaks more than PGD")
FINE = Finding("steps", False, "PGD breaks more than FGSM")


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder: a copy of the store of `finished`, with the same run `mine`, whose best and
    last models are logged, and one of them registered."""
    shutil.copy(finished / "mlflow.db", tmp_path)
    remove_evaluations(finished)
    in_folder(tmp_path, monkeypatch)
    return tmp_path


def remove_evaluations(finished: Path) -> None:
    """Removes artifacts of earlier tests."""
    for evaluations in finished.glob("mlruns/*/artifacts/evaluations"):
        shutil.rmtree(evaluations)


def models() -> dict[str, Any]:
    """All logged models by their names."""
    ids = [one.experiment_id for one in client().search_experiments()]
    return {one.name: one for one in client().search_logged_models(ids)}


def registered() -> dict[str, str]:
    """The versions of each model, by its name."""
    names = {f"models:/{one.model_id}": name for name, one in models().items()}
    return {names[one.source]: str(one.version) for one in client().search_model_versions()}


def other_model(name: str, run: str | None = "other") -> Any:
    """A logged model of another run."""
    (experiment,) = {one.info.experiment_id for one in runs()}
    run_id = client().create_run(experiment, run_name=run).info.run_id if run else None
    return client().create_logged_model(experiment, name=name, source_run_id=run_id)


def evaluated(
    home: Path,
    model: Any,
    clean: range,
    right: range,
    *,
    attack: str = "pgd-40",
    images: str = "d",
    data: str = "digits-val",
    eps: float = 8 / 255,
    finding: Finding = FINE,
    outcomes: bool = True,
) -> None:
    """Logs an evaluation: correct on the `clean` images, and under an attack on `right`."""
    protocol = {
        "model": model.model_id, "images": 64 * images, "places": "p" * 16, "seed": 0,
        "threat": {"norm": "linf", "eps": eps},
    }  # fmt: skip
    outcome_store = OutcomeStore(
        home / f"{model.model_id}-{attack}-{data}-{images}-{eps}", protocol, {}
    )
    steps = {}
    for name, withstands in ((CLEAN, clean), (attack, right)):
        given = torch.arange(NUM) if name == CLEAN else torch.tensor(clean)
        broken = torch.tensor([int(k) not in withstands for k in given])
        zeros = torch.zeros(len(given))
        labels = zeros.long()
        steps[Step(name, 0, name, 0)] = Outcome(
            given, given, labels, labels, broken, ~zeros.bool(), zeros, zeros, 0.0
        )
    for step, outcome in steps.items():
        outcome_store.save_outcome(step, outcome)
    files = [home / "outcomes.parquet"] if outcomes else []
    outcome_store.export(home / "outcomes.parquet")
    made = list(steps.items())
    report = Report(
        name=model.name, data=data, num=NUM, protocol=protocol, attacks={}, folder=home,
        results=summarise(made, [Ensemble(attack, (find_attack(attack),))]), findings=(finding,),
        robust={name: robust_samples(made, name, NUM) for name in (CLEAN, attack)},
    )  # fmt: skip
    variant = None if registered().get(model.name) else model.name
    place = LoggedModelRef(store.tracking_uri(home), model.source_run_id, model.model_id, variant)
    log_evaluation(report, place, command="again", experiment="raymi", home=home, files=files)


@pytest.fixture(scope="module")
def three_evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three evaluated models, and a copy of their artifacts in `mlruns`."""
    home = tmp_path_factory.mktemp("three")
    shutil.copy(finished / "mlflow.db", home)
    remove_evaluations(finished)
    with pytest.MonkeyPatch.context() as patch:
        in_folder(home, patch)
        evaluated(home, models()["best"], range(180), range(100))
        evaluated(home, models()["last"], range(160), range(110))
        evaluated(home, other_model("third"), range(170), range(40))
    shutil.copytree(finished / "mlruns", home / "mlruns")
    return home


@pytest.fixture
def three(home: Path, three_evaluated: Path, finished: Path) -> Path:
    """Best and last of `mine`, and a model of another run that is less robust; the registered one
    is the best by far on natural images."""
    shutil.copy(three_evaluated / "mlflow.db", home)
    shutil.copytree(three_evaluated / "mlruns", finished / "mlruns", dirs_exist_ok=True)
    return home


def run_select(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Output of the command, which succeeds."""
    assert select.main(list(words)) == 0
    return " ".join(capsys.readouterr().out.split())


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert select.main(list(words)) == 2
    return capsys.readouterr().err


def state() -> Any:
    """Content of the registry."""
    versions = client().search_model_versions()
    told = [(one.name, one.version, one.source, one.tags) for one in versions]
    return told, [(one.name, one.aliases, one.tags) for one in client().search_registered_models()]


def champion(alias: str = "champion") -> Any:
    return client().get_model_version_by_alias("tiny", alias)


def test_the_most_robust_model_gets_a_version_the_alias_and_the_reasons(three, capsys):
    assert registered() == {"best": "1"}
    said = run_select(capsys)
    assert "3 models on digits-val (200 images), linf_8_255, ranked by pgd-40" in said
    assert "chosen: mine/last alias 'champion' now points to tiny v2" in said
    version = champion()
    assert registered() == {"best": "1", "last": "2"}
    assert version.source == f"models:/{models()['last'].model_id}"
    assert {key.rpartition(".")[2]: text for key, text in version.tags.items()} == {
        "selected_by": "pgd-40 55.0% (48.1-61.7) on digits-val (200 images), linf_8_255",
        "constraints": "none",
        "candidates": "3 of 3 could be chosen",
        "runner_up": "mine/best: 50.0% (43.1-56.9), -5.0 points, more than noise",
        "doubts": "none",
        "command": "python -m raymi.select",
    }


def test_the_model_chosen_by_training_stays_the_model_of_its_run(three, capsys):
    run_select(capsys)
    config = tiny_runs.tiny_config()
    found = [find_model_source(f"models:/tiny/{version}", config).variant for version in (1, 2)]
    assert found == [None, "last"]


def test_reasons_move_with_the_alias_under_a_constraint(three, capsys):
    run_select(capsys)
    said = run_select(capsys, "clean>=0.88")
    assert "alias 'champion' now points to tiny v1 (before: v2)" in said
    assert champion().tags["raymi.champion.constraints"] == "clean>=0.88"
    assert champion().tags["raymi.champion.candidates"] == "1 of 3 could be chosen"
    before = client().get_model_version("tiny", "2")
    assert not [key for key in before.tags if key.startswith("raymi.champion")]


def test_an_alias_moved_by_hand_gets_the_reasons_at_the_next_selection(three, capsys):
    run_select(capsys)
    client().set_registered_model_alias("tiny", "champion", "1")
    run_select(capsys, "clean>=0.88")
    assert champion().tags["raymi.champion.constraints"] == "clean>=0.88"
    assert not client().get_model_version("tiny", "2").tags


def test_selecting_again_changes_nothing(three, capsys):
    run_select(capsys, "clean>=0.5")
    before = state()
    said = run_select(capsys, "clean>=0.5")
    assert "alias 'champion' already points to tiny v2, with the same reasons" in said
    assert state() == before


def test_a_dry_run_changes_nothing(three, capsys):
    before = state()
    assert "nothing was changed" in run_select(capsys, "--dry-run")
    assert state() == before
    run_select(capsys, "clean>=0.88")
    before = state()
    said = run_select(capsys, "--dry-run")
    assert "alias 'champion' would point to a new version of tiny (now: v1)" in said
    assert state() == before


def test_another_alias_keeps_the_first_one(three, capsys):
    run_select(capsys)
    run_select(capsys, "alias=clean-one", "clean>=0.88")
    assert (str(champion().version), str(champion("clean-one").version)) == ("2", "1")
    assert champion("clean-one").tags["raymi.clean-one.constraints"] == "clean>=0.88"
    assert champion().tags["raymi.champion.constraints"] == "none"


def test_the_front_is_marked(three, capsys):
    assert run_select(capsys, "--dry-run").count("Pareto") == 2


def test_differences_are_paired_with_logged_outcomes(home, capsys):
    evaluated(home, models()["best"], range(180), range(100))
    evaluated(home, models()["last"], range(160), range(50, 155))
    said = run_select(capsys, "--dry-run")
    assert "within noise (paired p=0.7)" in said, "50 against 55"


def test_differences_stay_paired_after_an_evaluation_under_another_protocol(home, capsys):
    evaluated(home, models()["best"], range(180), range(100))
    evaluated(home, models()["last"], range(160), range(20, 130))
    for images in ("e", "f"):
        evaluated(home, models()["best"], range(180), range(100), images=images)
    said = run_select(capsys, "data=digits-val@dddddddd", "--dry-run")
    assert "paired p=" in said


@pytest.mark.parametrize("lost", ["best", "last"])
def test_without_outcomes_of_both_models_intervals_are_compared(home, capsys, lost):
    evaluated(home, models()["best"], range(180), range(100), outcomes=lost != "best")
    evaluated(home, models()["last"], range(160), range(110), outcomes=lost != "last")
    said = run_select(capsys, "--dry-run")
    assert "within noise (intervals overlap, not paired)" in said


def test_damaged_outcomes_count_as_none(home, capsys, finished):
    evaluated(home, models()["best"], range(180), range(100))
    evaluated(home, models()["last"], range(160), range(110))
    (damaged,) = finished.glob("mlruns/*/artifacts/evaluations/last-*/outcomes.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert "within noise (intervals overlap, not paired)" in run_select(capsys, "--dry-run")


def test_a_model_without_a_run_is_a_candidate(three, capsys):
    evaluated(three, other_model("alone", run=None), range(190), range(150))
    said = run_select(capsys, "registered_name=it's")
    assert "4 models on" in said
    assert "chosen: alone alias 'champion' now points to it's v1" in said
    assert "already" in run_select(capsys, "registered_name=it's")
    assert registered() == {"best": "1", "alone": "1"}


def test_models_of_other_programs_are_no_candidates(home, capsys):
    theirs = other_model("theirs")
    dataset = {"dataset_name": "digits-test", "dataset_digest": "d" * 32}
    for name, value in (("test/acc", 0.9), ("test/num", 40.0), ("test/clean_acc", float("nan"))):
        place = {"model_id": theirs.model_id, **dataset}
        client().log_metric(theirs.source_run_id, name, value, **place)
    assert "2 models on digits-test (40 images)" in run_select(capsys, "--dry-run")


def test_doubtful_models_are_listed_but_not_chosen(three, capsys):
    evaluated(three, other_model("masked", "bad"), range(199), range(199), finding=MASKED)
    said = run_select(capsys)
    assert "doubtful: bad/masked: steps" in said
    assert "chosen: mine/last" in said
    assert "chosen: bad/masked" in run_select(
        capsys, "doubtful=allow", "--dry-run", "registered_name=brave"
    )


def test_all_pages_of_a_search_are_read(three, capsys, monkeypatch):
    monkeypatch.setattr(store, "PAGE_SIZE", 1)
    assert "3 models on" in run_select(capsys, "--dry-run")


def test_several_protocols_are_refused_with_the_options_that_choose(three, capsys):
    evaluated(three, models()["best"], range(150), range(90), data="digits-test", images="e")
    evaluated(three, models()["best"], range(180), range(60), eps=16 / 255)
    said = refusal(capsys)
    words = [line.split()[:2] for line in said.splitlines()[1:]]
    assert [" ".join(pair) for pair in words] == [
        "data=digits-test threat=linf_8_255",
        "data=digits-val threat=linf_16_255",
        "data=digits-val threat=linf_8_255",
    ]
    assert "(3 models, 200 images: pgd-40)" in said
    for pair, num in zip(words, (1, 1, 3), strict=True):
        found = run_select(capsys, *pair, "--dry-run")
        assert f"{num} model{'s' if num > 1 else ''} on " in found


def test_image_sets_of_one_name_are_distinguished(three, capsys):
    evaluated(three, other_model("elsewhere"), range(190), range(180), images="e")
    said = refusal(capsys)
    assert "data=digits-val@dddddddd" in said
    assert "chosen: mine/last" in run_select(capsys, "data=digits-val@dddddddd")


def test_models_without_the_metric_are_listed_as_left_out(three, capsys):
    evaluated(three, models()["best"], range(180), range(80), attack="square")
    said = run_select(capsys, "metric=square", "--dry-run")
    assert "1 model on digits-val" in said
    assert "left out, measured otherwise: mine/last, other/third" in said


def test_models_can_be_restricted_to_single_runs(three, capsys):
    said = run_select(capsys, "run=other", "--dry-run", "registered_name=third")
    assert "1 model on" in said
    assert "chosen: other/third alias 'champion' would point to a new version of third" in said
    assert "did you mean other?" in refusal(capsys, "run=othr")


def test_a_model_without_a_registered_name_needs_one(three, capsys):
    words = ("run=other", "--dry-run")
    assert "give registered_name=NAME" in refusal(capsys, *words)


def test_models_of_deleted_runs_are_no_candidates(three, capsys):
    (other,) = (run for run in runs() if run.info.run_name == "other")
    client().delete_run(other.info.run_id)
    assert "2 models on" in run_select(capsys, "--dry-run")


def test_without_evaluations_accuracies_of_trainings_are_used(home, capsys):
    said = run_select(capsys)
    assert f"2 models on digits-test (40 images), linf_0.2, ranked by {OF_TRAINING}" in said
    assert "biased upwards" in said
    assert champion().tags["raymi.champion.selected_by"].startswith(OF_TRAINING)


def test_all_numbers_are_written_to_json(three, capsys, tmp_path):
    run_select(capsys, "--json", str(tmp_path / "all.json"), "clean>=0.82")
    told = json.loads((tmp_path / "all.json").read_text())
    assert [one["name"] for one in told["models"]] == ["mine/best", "other/third", "mine/last"]
    assert told["models"][0]["numbers"]["pgd-40"]["accuracy"] == 0.5
    assert told["models"][2]["excluded"] == "not clean>=0.82"
    assert told["chosen"] == models()["best"].model_id
    assert told["constraints"] == ["clean>=0.82"]


def test_the_logged_command_repeats_the_selection(three, capsys):
    run_select(capsys, "metric=pgd-40", "clean>=0.85", "--json", str(three / "all.json"))
    before = state()
    command = shlex.split(champion().tags["raymi.champion.command"])
    assert "already" in run_select(capsys, *command[3:])
    assert state() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("clean>=0.99",), "the best values are clean 0.9000 (mine/best), pgd-40 0.5500"),
        (("experiment=rayme",), "did you mean raymi?"),
        (("sweep=mine",), "no sweep 'mine' in MLflow: the experiment has none"),
        (("metric=autoattack",), "expected an attack that the models were measured with"),
        (("pgd40>=0.1",), "did you mean pgd-40"),
        (("lr=0.1",), "optim.lr has no effect on a selection"),
        (("registered_name=a/b",), "registered_name: expected a name without / and :"),
    ],
)
def test_refusals_have_a_remedy(three, capsys, words, said):
    before = state()
    err = refusal(capsys, *words)
    assert said in err
    assert len(err.splitlines()) == 1
    assert state() == before


def test_a_missing_store_is_not_created(tmp_path, monkeypatch, capsys):
    in_folder(tmp_path, monkeypatch)
    assert f"there is no MLflow store {tmp_path}/mlflow.db: change to" in refusal(capsys)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    assert "none.db: change to the folder with mlflow.db" in refusal(capsys)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_store_is_named_without_its_password(tmp_path, monkeypatch, capsys):
    in_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    err = refusal(capsys)
    assert err.startswith("error: MLflow at http://127.0.0.1:9 fails: ")
    assert "s3cret" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("call", ["set_registered_model_alias", "delete_model_version_tag"])
def test_a_selection_interrupted_by_an_outage_is_completed_by_the_same_command(
    three, capsys, monkeypatch, call
):
    run_select(capsys, "clean>=0.88")
    outage = Outage(monkeypatch, call)
    assert "fails: ConnectionError: " in refusal(capsys)
    outage.over = True
    assert "alias 'champion' now points to tiny v2" in run_select(capsys)
    assert registered() == {"best": "1", "last": "2"}
    assert not client().get_model_version("tiny", "1").tags, "reasons are where the alias is"


@pytest.mark.exhaustive
def test_a_server_gives_the_same_selection_as_its_file(three, capsys, monkeypatch):
    """Over the network, pages, ids and errors have other forms."""
    here = run_select(capsys, "--dry-run")
    server = Server(three / "server", store.tracking_uri(three))
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert run_select(capsys, "--dry-run") == here
        assert "alias 'champion' now points to tiny v2" in run_select(capsys)
        assert "already points to tiny v2, with the same reasons" in run_select(capsys)
        assert "did you mean raymi?" in refusal(capsys, "experiment=rayme")
    finally:
        server.kill()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert str(champion().version) == "2"
    assert registered() == {"best": "1", "last": "2"}


def test_help_lists_the_options(capsys):
    said = run_select(capsys, "--help")
    assert "'clean>=0.80'" in said
    assert "optim" not in said


def test_names_from_mlflow_are_escaped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(home, models()["best"], range(180), range(100))
    hostile = "[/][red]\x1b[31m\x1b]8;;http://x\x07\u202e"
    evaluated(home, other_model("third", run=hostile), range(170), range(90))
    told = run_select(capsys, "--dry-run")
    assert "[/][red]\\x1b[31m\\x1b]8;;http://x\\x07\\u202e" in told
    assert not {"\x1b", "\x07", "\u202e"} & set(told)
