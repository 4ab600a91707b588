"""Common corruptions: files of corrupted test images, as CIFAR-10-C and CIFAR-100-C have them.

A folder holds `labels.npy` and a file NAME.npy for each corruption, uint8 (5 * N, H, W, 3): N
images at severity 1, the same images at severity 2, and so on to 5. Their order is that of the
original set, so that a sample's place in it (`ImageSet.places`) finds its rows.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymi.attacks.catalogue import EvaluationAttack, Threat, run_function
from raymi.attacks.execution import Batch
from raymi.attacks.suites import CORRUPTION, CORRUPTIONS, SEVERITIES, Ensemble
from raymi.data.augment import to_unit
from raymi.data.image_set import ImageSet
from raymi.errors import UserError

EXTRA = frozenset({"gaussian_blur", "saturate", "spatter", "speckle_noise"})
"""Corruptions that the source keeps for validation: the mean over corruptions leaves them out."""

_LABELS = "labels.npy"


def corruption_ensembles(folder: Path, images: ImageSet) -> tuple[Ensemble, ...]:
    """Checks the files of a folder, and returns an ensemble for each corruption and severity.

    Each applies to all images, also to those that are misclassified without the corruption.

    Args:
        folder: with labels.npy and NAME.npy.
        images: test images to evaluate.

    Raises:
        UserError: With a line for each file that is missing, damaged, of another shape, or of other
            labels than the images.
    """
    problems: list[str] = []
    num = _check_labels(folder / _LABELS, images, problems)
    files = sorted(path for path in folder.glob("*.npy") if path.name != _LABELS)
    if not files:
        problems.append(f"corruptions: {folder} has no file such as fog.npy")
    for path in files:
        _check_images(path, num, images.images.shape[-1], problems)
    if problems:
        raise UserError("\n".join(problems))
    names = {path.stem for path in files}
    counted = names - EXTRA or names
    labels = sha256(folder / _LABELS)
    return tuple(
        Ensemble(
            attack.name,
            (attack,),
            everyone=True,
            means=(f"{CORRUPTION}{path.stem}", *([CORRUPTIONS] if path.stem in counted else [])),
        )
        for path in files
        for attack in _severities(path, {_LABELS: labels, path.name: sha256(path)})
    )


def corrupted(
    model: nn.Module, batch: Batch, threat: Threat, path: str, digest: str, severity: int
) -> Tensor:
    """Returns the images of a batch (B, 3, H, W) at a severity from 1.

    Raises:
        UserError: The file is not the one that was checked.
    """
    rows = _rows(path, digest)
    first = (severity - 1) * (len(rows) // SEVERITIES)
    pixels = torch.from_numpy(rows[first + batch.index.cpu().numpy()])
    return to_unit(pixels.permute(0, 3, 1, 2).to(batch.x.device)).contiguous()


@cache
def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _rows(path: str, digest: str) -> NDArray[np.uint8]:
    """Maps a file into memory; once in each process it is read whole and compared."""
    try:
        same = sha256(Path(path)) == digest
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror or error}): every node must see the same folder"
        ) from None
    if not same:
        raise UserError(f"{path} is not the file that was checked: start again")
    rows: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


def _severities(path: Path, inputs: dict[str, str]) -> list[EvaluationAttack]:
    return [
        EvaluationAttack(
            f"{CORRUPTION}{path.stem}-{severity}",
            partial(
                run_function,
                "corruptions.corrupted",
                path=str(path.absolute()),
                digest=inputs[path.name],
                severity=severity,
            ),
            {"severity": severity},
            in_ball=False,
            by_gradient=False,
            inputs=inputs,
        )
        for severity in range(1, SEVERITIES + 1)
    ]


def _check_labels(path: Path, images: ImageSet, problems: list[str]) -> int | None:
    """Compares the labels with the images' labels; returns N, or None if it is unknown."""
    labels = _load(path, problems)
    if labels is None:
        return None
    if labels.ndim != 1 or len(labels) % SEVERITIES or not np.issubdtype(labels.dtype, np.integer):
        problems.append(
            f"{path}: expected integers ({SEVERITIES} * N,), got {labels.dtype} {labels.shape}"
        )
        return None
    places, num = images.places.cpu().numpy(), len(labels) // SEVERITIES
    if places.max() >= num:
        problems.append(
            f"{path}: expected labels of {SEVERITIES} severities of at least {places.max() + 1} "
            f"test images, got {len(labels)} labels: give the data set of which the files are"
        )
        return num
    wrong = (labels.reshape(SEVERITIES, num)[:, places] != images.labels.cpu().numpy()).any(0)
    if wrong.any():
        problems.append(
            f"{path}: {wrong.sum()} of {len(places)} test images have another label there: give "
            "the data set that the files were made from, with its classes in the same order"
        )
    return num


def _check_images(path: Path, num: int | None, side: int, problems: list[str]) -> None:
    rows = _load(path, problems)
    if re.fullmatch(r"[A-Za-z0-9_]{1,60}", path.stem) is None:
        problems.append(f"{path.name!r}: expected a name of letters, digits and _: rename it")
    if rows is None:
        return
    length = f"{SEVERITIES} * N" if num is None else str(SEVERITIES * num)
    right = rows.ndim == 4 and rows.shape[1:] == (side, side, 3) and rows.dtype == np.uint8
    if not right or (num is not None and len(rows) != SEVERITIES * num):
        problems.append(
            f"{path}: expected uint8 ({length}, {side}, {side}, 3), got {rows.dtype} {rows.shape}"
        )


def _load(path: Path, problems: list[str]) -> NDArray[np.generic] | None:
    """Maps a file into memory; adds a problem if that fails."""
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        problems.append(f"corruptions: no file {path}: it has the label of each corrupted image")
    except (OSError, ValueError, EOFError) as error:
        problems.append(f"{path} is not a whole file of numpy ({error}): download it again")
    else:
        return array
    return None
