"""Evaluation protocol: everything that outcomes depend on; its hash is the cache key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
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
OUTCOME_CODE = (
    "attacks",
    "models",
    "counter_rng.py",
    "random_state.py",
    "data/augment.py",
    "evaluation/blocks.py",
)
"""Files and folders of the package whose code decides the outcomes of attacks."""

_FORMAT = 1  # of the files of an outcome store
_LONGEST_PART = 100  # a metric's name has at most 250 characters
_SMALLEST, _LARGEST, _BLOCKS = 32, 256, 16


def block_size(num: int) -> int:
    """Returns the default number of samples in a block.

    Large sets get blocks that fill a GPU, small sets enough blocks to share among workers. Results
    depend on the size, so it depends on the number of samples alone.
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
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns the protocol of an evaluation, without its attacks, in JSON's types.

    Args:
        model: digest of the classifier.
        images: images to attack.
        threat: norm and radius.
        seed: of the evaluation.
        block: samples in a block.
        device: "cpu" or "cuda"; they round differently.
        threads: CPU threads of a worker; they change rounding, too.
        inputs: SHA-256 of the files that attacks read, by name, see `attack_inputs`.
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
    } | ({"inputs": dict(inputs)} if inputs else {})


def attack_inputs(ensembles: Iterable[Ensemble]) -> dict[str, str]:
    """Returns the SHA-256 of all files that attacks read, by name."""
    return {
        name: digest
        for ensemble in ensembles
        for attack in ensemble.attacks
        for name, digest in attack.inputs.items()
    }


def attack_settings(ensembles: Iterable[Ensemble]) -> dict[str, Any]:
    """Returns the settings of all attacks by name, in JSON's types."""
    return {a.name: _settings(a) for ensemble in ensembles for a in ensemble.attacks}


def threat_name(norm: str, eps: float) -> str:
    """Returns a threat as a part of metric names, such as `linf_8_255`."""
    return f"{norm}_{as_typed(eps).replace('/', '_')}"


def parse_threat(name: str) -> tuple[str, float]:
    """Returns norm and eps of a threat from its name, such as `linf_8_255`."""
    norm, _, eps = name.partition("_")
    return norm, float(Fraction(eps.replace("_", "/")))


def as_metric(name: str) -> str:
    """Returns a name with the characters and the length that MLflow accepts in metrics."""
    text = re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII)
    return text if len(text) <= _LONGEST_PART else f"{text[: _LONGEST_PART - 9]}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """Returns the first eight hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Returns 12 hexadecimal digits of a protocol, for the name of its folder."""
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
