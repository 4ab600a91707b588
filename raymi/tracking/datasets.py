"""Data sets in MLflow, as inputs of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class DataSet(NamedTuple):
    """Data set of a run.

    Attributes:
        name: such as `digits-test`.
        checksum: of its images.
        context: its purpose, such as "train".
    """

    name: str
    checksum: str
    context: str


def dataset_splits(data: Mapping[str, Any]) -> list[DataSet]:
    """Returns the splits of a run's data.

    Args:
        data: of the journal's "start".
    """
    return [DataSet(f"{data['name']}-{split}", d, split) for split, d in data["digests"].items()]


def link_datasets(client: Any, run_id: str, sets: Iterable[DataSet]) -> list[Any]:
    """Adds data sets to the inputs of a run; existing inputs are not duplicated.

    Returns:
        MLflow's entities of the data sets, in order.
    """
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for name, checksum, context in sets:
        source = HTTPDatasetSource(url=f"raymi:{name}")
        dataset = MetaDataset(source, name=name, digest=checksum[:32])._to_mlflow_entity()
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    client.log_inputs(run_id, inputs)
    return [one.dataset for one in inputs]
