"""Weights in safetensors with a checksum inside; equal content has equal bytes.

The header is sorted, as safetensors itself writes metadata in random order. The metadata contain
the sha256 of the whole file, computed with zeros in its own place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raymi.errors import UserError, first_line

_LENGTH = 8  # bytes of the header's length, little-endian, with which a file begins
_FORMAT, _SHA256 = "raymi.format", "raymi.sha256"
"""Metadata of files that raymi wrote; with either of them the checksum must match."""

_BLANK = "0" * 64


class Weights(NamedTuple):
    """Tensors on the CPU by name, and their metadata."""

    tensors: dict[str, Tensor]
    about: dict[str, str]


def weights_as_bytes(state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """Serialises a state dict.

    Args:
        state: tensors by name; tied ones are written twice.
        about: metadata.

    Returns:
        The content of a safetensors file with its checksum; a function of the arguments alone.
    """
    copies = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    plain = memoryview(safetensors.torch.save(copies))
    end = _LENGTH + int.from_bytes(plain[:_LENGTH], "little")
    tensors = json.loads(bytes(plain[_LENGTH:end]))
    ordered = sorted(tensors.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
    metadata = dict(sorted({**(about or {}), _FORMAT: "1", _SHA256: _BLANK}.items()))
    header = json.dumps({"__metadata__": metadata, **dict(ordered)}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH)
    blank = b"".join([len(header).to_bytes(_LENGTH, "little"), header, plain[end:]])
    digest = hashlib.sha256(blank).hexdigest()
    return blank.replace(_entry(_BLANK), _entry(digest), 1)


def read_weights_file(path: Path) -> Weights:
    """Reads a safetensors file, of raymi or of another program.

    Raises:
        UserError: the file cannot be read, or does not match the checksum inside it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return parse_weights(data, str(path))


def parse_weights(data: bytes, name: str) -> Weights:
    """Parses the content of a safetensors file.

    Files of other programs, without raymi's checksum, are accepted.

    Args:
        data: content of the file.
        name: its path, for messages.

    Raises:
        UserError: the content is no safetensors, or does not match the checksum inside it.
    """
    try:
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        about = json.loads(data[_LENGTH:end]).get("__metadata__") or {}
        if {_FORMAT, _SHA256} & set(about):
            _check(data, end, about, name)
        tensors = safetensors.torch.load(data)  # in random order
        return Weights(dict(sorted(tensors.items())), dict(about))
    except UserError:
        raise
    except Exception as error:  # a damaged header may hold anything
        raise UserError(
            f"{name} cannot be read as safetensors ({type(error).__name__}: {first_line(error)}): "
            f"{_REMEDY}"
        ) from None


_REMEDY = (
    "copy it again from an intact original, or use another model of the run (best, last) or one of "
    "its checkpoints"
)


def _check(data: bytes, end: int, about: Mapping[str, Any], name: str) -> None:
    digest = str(about.get(_SHA256, ""))
    entry = _entry(digest)
    place = data.find(entry, _LENGTH, end)
    sha = hashlib.sha256(data[:place])
    sha.update(_entry(_BLANK))
    sha.update(memoryview(data)[place + len(entry) :])
    if place < 0 or sha.hexdigest() != digest:
        raise UserError(
            f"{name} is damaged, its content does not match the sha256 inside it: {_REMEDY}"
        )


def _entry(digest: str) -> bytes:
    """Returns the checksum's entry in the header; JSON escapes the quotes in other strings."""
    return f'"{_SHA256}":"{digest}"'.encode()
