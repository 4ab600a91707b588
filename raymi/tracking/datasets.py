"""Data sets in MLflow: inputs of the runs that used them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class DataSet(NamedTuple):
    """A data set: its name, such as `digits-test`; a checksum of its images; what it is for, such
    as "train"."""

    name: str
    checksum: str
    context: str


def datasets_of(data: Mapping[str, Any]) -> list[DataSet]:
    """The splits of a run's data.

    Args: data, from the journal's "start".
    """
    return [DataSet(f"{data['name']}-{split}", d, split) for split, d in data["digests"].items()]


def link_datasets(client: Any, run_id: str, sets: Iterable[DataSet]) -> list[Any]:
    """Makes data sets inputs of a run; those that are inputs of it already stay.

    Returns: MLflow's entities of them, in order.
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
