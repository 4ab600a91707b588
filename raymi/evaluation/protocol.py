"""What the outcomes of an evaluation depend on: whatever changes here gets a ledger of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import raymi
from raymi.attacks.catalogue import EvaluationAttack, Threat
from raymi.attacks.suites import Ensemble
from raymi.data import ImageSet
from raymi.formatting import as_typed

_LIBRARIES = ("torch", "numpy", "foolbox", "pyautoattack", "torchattacks")
OUTCOME_CODE = ("attacks", "models", "counter_rng.py", "data/augment.py", "evaluation/blocks.py")
"""Files and folders of the package whose code decides the outcomes of attacks."""

_FORMAT = 1  # of a ledger's files
_SMALLEST, _LARGEST, _BLOCKS = 32, 256, 16


def block_size(num: int) -> int:
    """Samples of a block, where the user names no number: a function of how many there are, and of
    nothing else, as results depend on it.

    Blocks fill a GPU where there are many samples, and where there are few they can still be shared
    among workers.
    """
    return max(_SMALLEST, min(_LARGEST, -(-num // _BLOCKS)))


def protocol_of(
    model: str,
    images: ImageSet,
    threat: Threat,
    *,
    seed: int,
    block: int,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """What outcomes depend on beside the attacks themselves, in JSON's types.

    Args: model, the digest of the classifier; images that are attacked; threat; seed of the
        evaluation; block, its samples; device, "cpu" or "cuda", and threads of a worker: they round
            differently.
    """
    places = hashlib.sha256(images.places.cpu().numpy().tobytes()).hexdigest()
    return {
        "format": _FORMAT,
        "model": model,
        "images": images.digest,
        "places": places[:16],
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "seed": seed,
        "block": block,
        "device": device,
        "threads": threads,
        "code": code_digest(Path(raymi.__file__).parent),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def settings_of(ensembles: Iterable[Ensemble]) -> dict[str, Any]:
    """The settings of all attacks of some ensembles, by name, in JSON's types."""
    return {a.name: _settings(a) for ensemble in ensembles for a in ensemble.attacks}


def threat_name(norm: str, eps: float) -> str:
    """A threat in the name of a metric, such as `linf_8_255`."""
    return f"{norm}_{as_typed(eps).replace('/', '_')}"


def name_of(protocol: Mapping[str, Any]) -> str:
    """12 digits that stand for a question, for the name of its folder."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def _settings(attack: EvaluationAttack) -> dict[str, Any]:
    radius = "any" if attack.radius == float("inf") else attack.radius
    return {**attack.settings, "radius": radius, "in_ball": attack.in_ball}


@cache
def code_digest(package: Path) -> str:
    """Hashes the code that outcomes depend on: the first 16 digits of its sha256.

    Args:
        package: folder of the package `raymi`.
    """
    sha = hashlib.sha256()
    for place in OUTCOME_CODE:
        path = package / place
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            sha.update(f"{file.relative_to(package).as_posix()}\n".encode())
            sha.update(file.read_bytes())
    return sha.hexdigest()[:16]
