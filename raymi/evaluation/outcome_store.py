"""What attacks did to each sample, kept in a folder that survives whatever happens.

Each step of each block is a file of its own, which is complete under its name or not there. The
folder belongs to one question (model, data, threat, seed, versions): another one is refused, so
that the numbers of two models never mix. Attacks may be added to it, never changed.
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
from pydantic import RootModel, ValidationError
from torch import Tensor

from raymi.errors import UserError
from raymi.evaluation.blocks import Outcome, Step
from raymi.evaluation.fingerprint import Fingerprint
from raymi.files import checksum, file_lock, is_whole, not_readable, not_writable, save
from raymi.runs.json_files import first_problem

_LEFT = "what was recorded is kept"
_keep = partial(save, note=_LEFT)
_OUTPUTS = "outputs.safetensors"
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
"""A row for each sample of each step; `sample`: its place in the data set, `selected`: in what was
selected of it; `seconds`: the step's, by the number of its samples."""


class _Tree(RootModel[dict[str, Any]]):
    """`question.json` and `attacks.json`."""


class OutcomeStore:
    """The outcomes of one evaluation.

    Args: folder; question, a tree of what all outcomes depend on, in JSON's types; attacks, by
        their names the settings of those that are made, in the same types; outputs, what the
        network answers, None where that is not known.
    Raises: UserError where the folder holds the outcomes of another question or another network, or
        of other settings under the same name; StorageError where it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        protocol: Mapping[str, Any],
        attacks: Mapping[str, Any] | None = None,
        outputs: Fingerprint | None = None,
    ) -> None:
        self.folder, self.protocol = folder, protocol
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.lock():
                self._bind(attacks or {})
                self._know(outputs)
        except OSError as error:
            raise not_writable(folder, error, _LEFT) from None

    @cached_property
    def identity(self) -> str:
        """12 digits that stand for the network and the question, as far as folders are told apart
        by them: not for what they are called."""
        asked = (self.folder / "question.json").read_bytes()
        outputs = self.folder / _OUTPUTS
        return checksum(asked + (outputs.read_bytes() if outputs.is_file() else b""))[:12]

    def _know(self, outputs: Fingerprint | None) -> None:
        """Keeps what the network answers, which must be what it did before."""
        path = self.folder / _OUTPUTS
        if outputs is None:
            return
        if not path.is_file():
            _keep(path, outputs.as_bytes())
        elif not answered_here(self.folder, outputs):
            raise UserError(
                f"{self.folder} belongs to a network that answers otherwise, or its file "
                f"{_OUTPUTS} is damaged: give the same command again, or move the folder away"
            )

    def _bind(self, attacks: Mapping[str, Any]) -> None:
        """Takes the folder for the question, and adds the settings of attacks."""
        folder, protocol = self.folder, self.protocol
        asked, settings = folder / "question.json", folder / "attacks.json"
        if asked.is_file():
            _compare(folder, _flat(_read(asked)), _flat(protocol))
            known = _read(settings) if settings.is_file() else {}
            both = [name for name in attacks if name in known]
            _compare(
                folder,
                _flat({name: known[name] for name in both}),
                _flat({name: attacks[name] for name in both}),
            )
            if len(both) < len(attacks):
                _keep(settings, _json(known | dict(attacks)))
            return
        # What a kill leaves of the first write has a name that begins with a dot.
        others = [path for path in _files(folder) if not path.name.startswith(".")]
        if any(path != settings for path in others):
            raise UserError(
                f"{folder} has files and is no ledger of an evaluation: give another folder"
            )
        _keep(settings, _json(attacks))
        _keep(asked, _json(protocol))

    def lock(self) -> AbstractContextManager[None]:
        """Keeps a second command out while one writes.

        Raises: UserError in the second one.
        """
        refusal = (
            f"the evaluation in {self.folder} is running in another process: wait for it, or give "
            "another folder"
        )
        return file_lock(self.folder / ".lock", refusal)

    def outcome(self, step: Step) -> Outcome | None:
        """What was recorded of a step; None where nothing was, or what was is damaged."""
        data = self._whole(step, ".parquet")
        return None if data is None else _outcome(pq.read_table(BytesIO(data)))

    def record(self, step: Step, outcome: Outcome) -> None:
        """Keeps the outcome of a step, in place of what was recorded of it.

        Raises: StorageError where it cannot be written.
        """
        self._replace(step, ".parquet", _parquet(_table(step, outcome)))

    def save(self, step: Step, outcome: Outcome, x_adv: Tensor) -> None:
        """Keeps the adversarial samples of a step, x_adv (M, C, H, W), with their places in the
        data set (`sample`) and in what was selected of it (`selected`), (M,) int64.

        Raises: StorageError where they cannot be written.
        """
        tensors = {
            "sample": outcome.places,
            "selected": outcome.samples,
            "x_adv": x_adv.contiguous(),
        }
        self._replace(step, ".safetensors", safetensors.torch.save(tensors))

    def adversarial(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """The samples (M,) of a step and their x_adv (M, C, H, W); None where they were not
        kept, or are damaged."""
        data = self._whole(step, ".safetensors")
        if data is None:
            return None
        tensors = safetensors.torch.load(data)
        return tensors["selected"], tensors["x_adv"]

    def export(self, path: Path) -> None:
        """Writes all that was recorded, of whatever attacks, as one parquet file: a row for each
        sample of each step, see `_SCHEMA`.

        Raises: StorageError where it cannot be written.
        """
        tables = [_SCHEMA.empty_table()]
        for file in sorted(self.folder.glob("*/*/*.parquet")):
            data = file.read_bytes()
            if is_whole(file, data):
                tables.append(pq.read_table(BytesIO(data)))
        _keep(path, _parquet(pa.concat_tables(tables)))

    def _whole(self, step: Step, suffix: str) -> bytes | None:
        """The content of a step's file that is not damaged."""
        for path in sorted(self._place(step).glob(f"{step.block:06d}-*{suffix}")):
            data = path.read_bytes()
            if is_whole(path, data):
                return data
            warnings.warn(f"{path} is damaged: the block is attacked again", stacklevel=3)
        return None

    def _replace(self, step: Step, suffix: str, data: bytes) -> None:
        """Writes a step's file, and removes those that were there before it."""
        name = f"{step.block:06d}-{checksum(data)}{suffix}"
        _keep(self._place(step) / name, data)
        for other in self._place(step).glob(f"{step.block:06d}-*{suffix}"):
            if other.name != name:
                other.unlink()

    def _place(self, step: Step) -> Path:
        return self.folder / step.ensemble / f"{step.position:02d}-{step.attack}"


def read_export(path: Path) -> Iterator[tuple[Step, Outcome]]:
    """What `OutcomeStore.export` wrote, step by step."""
    table = pq.read_table(path)
    keys = ("ensemble", "position", "attack", "block")
    numbered = table.select(keys).append_column("row", pa.array(range(len(table))))
    rows: dict[Step, list[int]] = defaultdict(list)
    for row in numbered.to_pylist():
        number = row.pop("row")
        rows[Step(**row)].append(number)
    for step, numbers in rows.items():
        yield step, _outcome(table.take(numbers))


def answered_here(folder: Path, outputs: Fingerprint | None) -> bool:
    """Whether the outcomes in a ledger's folder are those of a network that answers so; True where
    that is not known."""
    path = folder / _OUTPUTS
    if outputs is None or not path.is_file():
        return True
    try:
        return Fingerprint.from_bytes(path.read_bytes()).are_those_of(outputs)
    except (OSError, ValueError):
        return False


def _table(step: Step, outcome: Outcome) -> pa.Table:
    num = len(outcome.samples)
    columns = {
        "ensemble": np.full(num, step.ensemble),
        "position": np.full(num, step.position),
        "attack": np.full(num, step.attack),
        "block": np.full(num, step.block),
        "sample": outcome.places.numpy(),
        "selected": outcome.samples.numpy(),
        "label": outcome.labels.numpy(),
        "prediction": outcome.predictions.numpy(),
        "broken": outcome.broken.numpy(),
        "usable": outcome.usable.numpy(),
        "linf": outcome.linf.float().numpy(),
        "l2": outcome.l2.float().numpy(),
        "seconds": np.full(num, outcome.seconds / max(1, num)),
    }
    return pa.table(columns, schema=_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _outcome(table: pa.Table) -> Outcome:
    def column(name: str) -> Tensor:
        return torch.tensor(table[name].to_numpy())

    return Outcome(
        samples=column("selected"),
        places=column("sample"),
        labels=column("label"),
        predictions=column("prediction"),
        broken=column("broken"),
        usable=column("usable"),
        linf=column("linf"),
        l2=column("l2"),
        seconds=float(np.sum(table["seconds"].to_numpy())),
    )


def _json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, indent=2, sort_keys=True).encode()


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _read(path: Path) -> dict[str, Any]:
    try:
        return _Tree.model_validate_json(path.read_bytes()).root
    except OSError as error:
        raise not_readable(path, error) from None
    except ValidationError as error:
        raise UserError(
            f"{path} is damaged, so nobody knows what the outcomes beside it belong to: move "
            f"{path.parent} away, or give another folder ({first_problem(error)})"
        ) from None


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    """Each leaf in JSON, by its path."""
    if not isinstance(tree, Mapping) or not tree:
        return {path.lstrip("."): json.dumps(tree)}
    flat: dict[str, str] = {}
    for name in tree:
        flat |= _flat(tree[name], f"{path}.{name}")
    return flat


def _compare(folder: Path, kept: dict[str, str], asked: dict[str, str]) -> None:
    differences = [
        f"{key}: there {kept.get(key, 'nothing')}, now {asked.get(key, 'nothing')}"
        for key in sorted({*kept, *asked})
        if kept.get(key) != asked.get(key)
    ]
    if differences:
        raise UserError(
            f"{folder} belongs to another evaluation, and outcomes of two are never mixed:\n"
            + "\n".join(differences)
            + "\ngive another folder, or the same question"
        )
