"""How MLflow's UI shows an experiment of raymi: as training, with the columns that compare robust
classifiers."""

from __future__ import annotations

import json
from typing import Any

VIEW = "raymi"
"""Name of the saved view, and its key in addresses."""

_COLUMNS = {
    "attributes.`Run Name`": 240,
    "runDateAndNestInfo": 138,
    "tags.`raymi.trial`": 76,  # long names of a sweep's trials differ in what is cut off
    "metrics.`val/best_robust_acc`": 134,
    "metrics.`test/clean_acc`": 106,
    "metrics.`test/pgd40_acc`": 110,
    "params.`loss.base`": 78,
    "params.`mi.balance`": 82,
    "params.`mi.weight`": 80,
    "attributes.`Models`": 178,
    "params.`attack.eps`": 86,
    "params.`seed`": 52,
    "tags.`raymi.recipe`": 120,
    "metrics.`test/robust_overfitting_gap`": 180,
    "duration": 80,
}
"""Columns in their order, with widths in pixels at which their names can be read."""

_SECTIONS = ("val", "test", "val/mi", "train", "train/mi")
"""Those of the charts that come first: by itself the UI begins with intervals of evaluations."""

_ABOUT = """Robust image classifiers, trained by raymi. *Views* at the top right has one called
**raymi** with the columns that compare them: robust accuracy on validation of the best epoch;
accuracy of the chosen model on test images, clean and under PGD-40; and the settings of the method.
A run's description has its results and the command that repeats it. `python -m raymi.report` draws
runs. `python -m raymi.select` chooses a model: in the *Model registry* it then has the alias
`champion`, with the reasons as tags."""


def experiment_tags() -> dict[str, str]:
    """Tags of an experiment: its kind, without which the UI shows it as one of prompts and traces;
    its first metric; a description; and a saved view of the table and of the charts.

    The view is what the UI itself saves under *Views* (MLflow 3.17); versions that know none ignore
    it.
    """
    state = {
        "selectedColumns": [key for key in _COLUMNS if "`" in key],
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [],  # the UI adds those of all metrics, and the other sections
        "compareRunSections": [_section(name) for name in _SECTIONS],
        "isAccordionReordered": True,
    }
    view = {"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "val/robust_acc",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        "mlflow.note.content": " ".join(_ABOUT.split()),
    }


def _section(name: str) -> dict[str, Any]:
    """A section of charts as the UI makes it itself for the metrics `name/...`."""
    made = {"display": True, "isReordered": False, "isGenerated": True}
    return {"uuid": f"autogen-{name}", "name": name, **made}


def apply_view(client: Any, experiment: Any) -> None:
    """Gives an experiment those of the tags that it does not have, whoever made it."""
    for key, text in experiment_tags().items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, text)
