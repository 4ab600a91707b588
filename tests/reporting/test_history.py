"""Runs as a report reads them."""

from __future__ import annotations

import json
import shutil

import pytest

from raymi.errors import UserError
from raymi.reporting.history import read_history
from raymi.runs.journal import JournalReader
from raymi.runs.run_folder import RunFolder


def events(folder, kind):
    return [one for one in JournalReader(folder.journal).new_events() if one["kind"] == kind]


@pytest.fixture
def own(namid, tmp_path):
    """Copy of a run, free to change."""
    shutil.copytree(namid.path, tmp_path / "own")
    return RunFolder(tmp_path / "own")


def rewrite(folder, keep):
    lines = [
        json.dumps(event) for event in JournalReader(folder.journal).new_events() if keep(event)
    ]
    folder.journal.write_text("".join(f"{line}\n" for line in lines))


def test_epochs_equal_those_of_the_journal(namid):
    history = read_history(namid)
    recorded = events(namid, "epoch")
    assert [one.number for one in history.phases["classifier"]] == [1, 2, 3, 4]
    for one, event in zip(history.phases["classifier"], recorded, strict=True):
        assert one.val == event["val"]
        assert one.train == event["train"]
    assert history.finished
    assert history.name == "namid"


@pytest.mark.parametrize(
    ("kind", "field"),
    [("epoch", "epoch"), ("epoch", "val"), ("evaluation", "which"), ("probe", "estimates"),
     ("warning", "message")],
)  # fmt: skip
def test_a_journal_without_a_field_is_refused_in_one_message(own, kind, field):
    recorded = JournalReader(own.journal).new_events()
    recorded.append({"kind": "warning", "message": "boo"})
    for event in recorded:
        if event["kind"] == kind:
            del event[field]
    own.journal.write_text("".join(f"{json.dumps(event)}\n" for event in recorded))
    with pytest.raises(UserError, match=rf"journal.jsonl has events .*KeyError: '{field}'"):
        read_history(own)


def test_phases_come_in_the_order_of_training(staged):
    history = read_history(staged)
    assert list(history.phases) == ["pretraining", "estimators", "classifier"]
    assert [len(epochs) for epochs in history.phases.values()] == [2, 1, 2]


def test_the_last_record_of_a_repeated_epoch_counts(own):
    (*_, last) = events(own, "epoch")
    repeated = {**last, "val": {**last["val"], "robust_acc": 0.123}, "better": []}
    with own.journal.open("a") as file:
        file.write(json.dumps(repeated) + "\n" + '{"kind": "epoch", "half')
    history = read_history(own)
    assert [one.number for one in history.phases["classifier"]] == [1, 2, 3, 4]
    assert history.phases["classifier"][-1].val["robust_acc"] == 0.123


def test_the_best_epoch_is_the_evaluated_one_or_the_last_improvement(own):
    measured = {one["which"]: one["of_epoch"] for one in events(own, "evaluation")}
    history = read_history(own)
    assert history.best_epoch("best") == measured["best"]
    assert history.best_epoch("best-averaged") == measured["best-averaged"]
    (chosen,) = [one["which"] for one in events(own, "evaluation") if one["chosen"]]
    assert history.chosen == chosen

    rewrite(own, lambda event: event["kind"] not in ("evaluation", "finished"))
    unfinished = read_history(own)
    assert not unfinished.finished
    assert unfinished.best_epoch("best") == measured["best"]
    assert unfinished.chosen == "best"


def test_a_run_before_its_start_has_no_epochs(tmp_path, plain):
    folder = RunFolder(tmp_path)
    folder.write_config(plain.read_config())
    history = read_history(folder)
    assert history.phases == {}
    assert history.best_epoch() is None
    assert history.probe is None


def test_later_probes_replace_those_of_the_training(own):
    history = read_history(own)
    (event,) = events(own, "probe")
    assert history.probe.estimates == event["estimates"]
    config = own.read_config()
    later = {
        "model": history.chosen,
        "probe": config.probe.model_dump(),
        "attack": str(config.attack),
        "validation": config.validation.model_dump(),
        "estimates": {"mi/natural_of_natural": 1.5},
    }
    (own.path / f"probe-{history.chosen}.json").write_text(json.dumps(later))
    later_history = read_history(own)
    assert later_history.probe.estimates == {"mi/natural_of_natural": 1.5}
    assert later_history.probe.settings == history.probe.settings

    (own.path / f"probe-{history.chosen}.json").write_text(json.dumps({**later, "model": "last"}))
    assert read_history(own).probe.estimates == event["estimates"], (
        "a probe of another model does not count"
    )


def test_numbers_that_are_not_finite_are_read(own):
    (*_, last) = events(own, "epoch")
    with own.journal.open("a") as file:
        file.write(json.dumps({**last, "train": {"loss": "inf"}}) + "\n")
    assert read_history(own).phases["classifier"][-1].train["loss"] == float("inf")
