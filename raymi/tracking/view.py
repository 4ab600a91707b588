"""How MLflow's UI shows an experiment of raymi: as training, with the columns that compare robust
classifiers."""

from __future__ import annotations

import json
from typing import Any

VIEW = "raymi"
"""Name of the saved view, and its key in addresses."""

_COLUMNS = (
    "tags.`raymi.recipe`",
    "metrics.`val/robust_acc`",
    "metrics.`test/clean_acc`",
    "metrics.`test/pgd40_acc`",
    "metrics.`test/robust_overfitting_gap`",
    "params.`seed`",
    "params.`attack.eps`",
    "attributes.`Models`",
)
_ABOUT = """Robust image classifiers, trained by raymi. *Views* at the top right has one called
**raymi** with the columns that compare them: accuracy on clean test images and under PGD-40, and
the robust validation accuracy by which the best epoch was chosen. A run's description has its
results and the command that repeats it; `python -m raymi.select` chooses among the models,
`python -m raymi.report` draws them."""


def experiment_tags() -> dict[str, str]:
    """Tags of an experiment: its kind, without which the UI shows it as one of prompts and traces;
    the metric whose chart comes first; a description; and a saved view.

    The view is what the UI itself saves under *Views* (MLflow 3.17); versions that know none ignore
    it.
    """
    state = {"selectedColumns": list(_COLUMNS), "runsHiddenMode": "FIRST_20_RUNS"}
    view = {"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "val/robust_acc",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        "mlflow.note.content": " ".join(_ABOUT.split()),
    }


def dress(client: Any, experiment: Any) -> None:
    """Gives an experiment those of the tags that it does not have, whoever made it."""
    for key, text in experiment_tags().items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, text)
