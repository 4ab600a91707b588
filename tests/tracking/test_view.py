"""View of an experiment in MLflow's UI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow_store import client

from raymi.tracking import store
from raymi.tracking.view import experiment_tags

pytestmark = pytest.mark.usefixtures("own_store")


def test_a_new_experiment_has_a_kind_and_a_view():
    place = store.experiment_id(client(), "mine", Path.cwd())
    tags = client().get_experiment(place).tags
    assert experiment_tags().items() <= tags.items()
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.raymi"])
    assert (view["name"], type(view["createdAt"]), type(view["state"])) == ("raymi", int, str)
    state = json.loads(view["state"])
    assert {"metrics.`test/robust_acc`", "tags.`raymi.method`"} <= {*state["selectedColumns"]}
    sections = [one["uuid"] for one in state["compareRunSections"]]
    assert {one["metricSectionId"] for one in state["compareRunCharts"]} == {sections[0]}
    # What the UI shows first has a place and a width: the others come after it, and are cut.
    assert {*state["selectedColumns"]} <= {*state["columnOrder"]} == {*state["columnWidths"]}
    assert [one["name"] for one in state["compareRunSections"]][:3] == ["overview", "val", "test"]


def test_existing_tags_of_an_experiment_stay():
    theirs = {"mlflow.note.content": "ours", "mlflow.experimentKind": "genai_development"}
    place = client().create_experiment("mine", tags=theirs)
    assert store.experiment_id(client(), "mine", Path.cwd()) == place
    tags = client().get_experiment(place).tags
    assert theirs.items() <= tags.items()
    assert set(experiment_tags()) <= set(tags)
