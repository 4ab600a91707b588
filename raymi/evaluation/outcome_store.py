"""Outcome store: per-sample attack outcomes on disk, crash-safe.

Each step of each block is a file that is complete or missing. A store belongs to one protocol
(model, data, threat, seed, versions) and refuses another, so numbers of two models never mix.
Attacks can be added, but not changed.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from pydantic import RootModel
from torch import Tensor

from raymi.errors import UserError
from raymi.evaluation.blocks import Outcome, Step
from raymi.evaluation.fingerprint import Fingerprint
from raymi.files import checksum, file_lock, is_whole, not_writable, save
from raymi.runs.json_files import read_json

_LEFT = "recorded outcomes are safe"
_save = partial(save, note=_LEFT)
_PROTOCOL, _ATTACKS, _FINGERPRINT = "question.json", "attacks.json", "outputs.safetensors"

_STEP = ("ensemble", "position", "attack", "block")
_OUTCOME = {
    "sample": "places",
    "selected": "samples",
    "label": "labels",
    "prediction": "predictions",
    "broken": "broken",
    "usable": "usable",
    "linf": "linf",
    "l2": "l2",
}
"""Attribute of `Outcome` by column."""
_SCHEMA = pa.schema(
    [
        ("ensemble", pa.string()),
        ("position", pa.int32()),
        ("attack", pa.string()),
        ("block", pa.int32()),
        ("sample", pa.int64()),
        ("selected", pa.int64()),
        ("label", pa.int64()),
        ("prediction", pa.int64()),
        ("broken", pa.bool_()),
        ("usable", pa.bool_()),
        ("linf", pa.float32()),
        ("l2", pa.float32()),
        ("seconds", pa.float64()),
    ]
)
"""Columns of a row, one for each sample of each step.

`sample` is the index in the data set, `selected` the index in the attacked images; `seconds` is
the step's duration divided by its number of samples.
"""


class _Tree(RootModel[dict[str, Any]]):
    """Content of a JSON file of the store."""


class OutcomeStore:
    """Outcomes of one evaluation.

    Args:
        folder: where they are.
        protocol: everything that all outcomes depend on, in JSON's types.
        attacks: settings of the attacks by name, in JSON's types.
        fingerprint: of the network; None: unknown.

    Raises:
        UserError: the folder has another protocol, network or settings of an attack.
        StorageError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        protocol: Mapping[str, Any],
        attacks: Mapping[str, Any] | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        self.folder, self.protocol = folder, protocol
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self._check_protocol(attacks or {})
                self._check_fingerprint(fingerprint)
        except OSError as error:
            raise not_writable(folder, error, _LEFT) from None

    @cached_property
    def identity(self) -> str:
        """12 hexadecimal digits of the protocol and the fingerprint; independent of names."""
        protocol = (self.folder / _PROTOCOL).read_bytes()
        fingerprint = self.folder / _FINGERPRINT
        content = protocol + (fingerprint.read_bytes() if fingerprint.is_file() else b"")
        return checksum(content)[:12]

    def _check_fingerprint(self, fingerprint: Fingerprint | None) -> None:
        """Saves the fingerprint, or compares it with the saved one."""
        path = self.folder / _FINGERPRINT
        if fingerprint is None:
            return
        if not path.is_file():
            _save(path, fingerprint.as_bytes())
        elif not matches_fingerprint(self.folder, fingerprint):
            raise UserError(
                f"{self.folder} belongs to a network with other outputs, or its file "
                f"{_FINGERPRINT} is damaged: give the same command again, or move the folder away"
            )

    def _check_protocol(self, attacks: Mapping[str, Any]) -> None:
        """Saves the protocol, or compares it with the saved one; adds the settings of attacks."""
        folder = self.folder
        protocol, settings = folder / _PROTOCOL, folder / _ATTACKS
        if protocol.is_file():
            _compare(folder, _flat(_read(protocol)), _flat(self.protocol))
            saved = _read(settings) if settings.is_file() else {}
            both = [name for name in attacks if name in saved]
            _compare(
                folder,
                _flat({name: saved[name] for name in both}),
                _flat({name: attacks[name] for name in both}),
            )
            if len(both) < len(attacks):
                _save(settings, _json(saved | dict(attacks)))
            return
        # A first write that was killed leaves files with names that begin with a dot.
        others = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if any(path != settings for path in others):
            raise UserError(
                f"{folder} has files and is not an outcome store of an evaluation: give another "
                "folder"
            )
        _save(settings, _json(attacks))
        _save(protocol, _json(self.protocol))

    def lock(self) -> AbstractContextManager[None]:
        """Locks the store for one writing process.

        Raises:
            UserError: another process holds the lock.
        """
        refusal = (
            f"the evaluation in {self.folder} is running in another process: wait for it, or give "
            "another folder"
        )
        return file_lock(self.folder / ".lock", refusal)

    def load_outcome(self, step: Step) -> Outcome | None:
        """Loads the outcome of a step; None: not recorded, or damaged."""
        data = self._read_intact(step, ".parquet")
        return None if data is None else _outcome(pq.read_table(BytesIO(data)))

    def save_outcome(self, step: Step, outcome: Outcome) -> None:
        """Saves the outcome of a step, in place of an earlier one.

        Raises:
            StorageError: it cannot be written.
        """
        self._replace(step, ".parquet", _parquet(_table(step, outcome)))

    def save_x_adv(self, step: Step, outcome: Outcome, x_adv: Tensor) -> None:
        """Saves the adversarial images of a step.

        Args:
            step: attack and block.
            outcome: its M samples; their indices are saved, too (`sample` and `selected`).
            x_adv: (M, C, H, W).

        Raises:
            StorageError: they cannot be written.
        """
        tensors = {
            "sample": outcome.places,
            "selected": outcome.samples,
            "x_adv": x_adv.contiguous(),
        }
        self._replace(step, ".safetensors", safetensors.torch.save(tensors))

    def load_x_adv(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """Loads samples (M,) and x_adv (M, C, H, W) of a step; None: not saved, or damaged."""
        data = self._read_intact(step, ".safetensors")
        if data is None:
            return None
        tensors = safetensors.torch.load(data)
        return tensors["selected"], tensors["x_adv"]

    def export(self, path: Path) -> None:
        """Writes the outcomes of all attacks to one parquet file; columns: `_SCHEMA`.

        Raises:
            StorageError: it cannot be written.
        """
        tables = [_SCHEMA.empty_table()]
        for file in sorted(self.folder.glob("*/*/*.parquet")):
            data = file.read_bytes()
            if is_whole(file, data):
                tables.append(pq.read_table(BytesIO(data)))
        _save(path, _parquet(pa.concat_tables(tables)))

    def _read_intact(self, step: Step, suffix: str) -> bytes | None:
        for path in sorted(self._folder_of(step).glob(f"{step.block:06d}-*{suffix}")):
            data = path.read_bytes()
            if is_whole(path, data):
                return data
            warnings.warn(f"{path} is damaged: the block is attacked again", stacklevel=3)
        return None

    def _replace(self, step: Step, suffix: str, data: bytes) -> None:
        """Writes a step's file, then removes earlier ones."""
        name = f"{step.block:06d}-{checksum(data)}{suffix}"
        _save(self._folder_of(step) / name, data)
        for other in self._folder_of(step).glob(f"{step.block:06d}-*{suffix}"):
            if other.name != name:
                other.unlink()

    def _folder_of(self, step: Step) -> Path:
        return self.folder / step.ensemble / f"{step.position:02d}-{step.attack}"


def read_export(path: Path) -> Iterator[tuple[Step, Outcome]]:
    """Yields the steps and outcomes in a file of `OutcomeStore.export`."""
    table = pq.read_table(path)
    rows: dict[Step, list[int]] = defaultdict(list)
    for number, row in enumerate(table.select(_STEP).to_pylist()):
        rows[Step(**row)].append(number)
    for step, numbers in rows.items():
        yield step, _outcome(table.take(numbers))


def matches_fingerprint(folder: Path, fingerprint: Fingerprint | None) -> bool:
    """Returns whether a store belongs to a network; True if either fingerprint is unknown."""
    path = folder / _FINGERPRINT
    if fingerprint is None or not path.is_file():
        return True
    try:
        return Fingerprint.from_bytes(path.read_bytes()).matches(fingerprint)
    except (OSError, ValueError):
        return False


def _table(step: Step, outcome: Outcome) -> pa.Table:
    num = len(outcome.samples)
    columns = {name: np.full(num, getattr(step, name)) for name in _STEP}
    for column, attribute in _OUTCOME.items():
        tensor = getattr(outcome, attribute)
        columns[column] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    columns["seconds"] = np.full(num, outcome.seconds / max(1, num))
    return pa.table(columns, schema=_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _outcome(table: pa.Table) -> Outcome:
    tensors = {
        attribute: torch.tensor(table[column].to_numpy()) for column, attribute in _OUTCOME.items()
    }
    return Outcome(**tensors, seconds=float(np.sum(table["seconds"].to_numpy())))


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=2, sort_keys=True).encode()


def _read(path: Path) -> dict[str, Any]:
    remedy = f"the outcomes beside it are of an unknown protocol: move {path.parent} away"
    return read_json(path, _Tree, remedy).root


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    """Returns each leaf, and each empty branch, as JSON by its path."""
    if not isinstance(tree, Mapping) or not tree:
        return {path.lstrip("."): json.dumps(tree)}
    flat: dict[str, str] = {}
    for name in tree:
        flat |= _flat(tree[name], f"{path}.{name}")
    return flat


def _compare(folder: Path, saved: dict[str, str], requested: dict[str, str]) -> None:
    differences = [
        f"{key}: there {saved.get(key, 'nothing')}, now {requested.get(key, 'nothing')}"
        for key in sorted({*saved, *requested})
        if saved.get(key) != requested.get(key)
    ]
    if differences:
        raise UserError(
            f"{folder} belongs to another evaluation, and outcomes of two are never mixed:\n"
            + "\n".join(differences)
            + "\ngive another folder, or the same protocol"
        )
