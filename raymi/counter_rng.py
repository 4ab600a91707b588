"""Random numbers as a pure function of (key, sample index, position).

They are the same on any device, for any number of workers and after any resume, and leave torch's
global random state untouched. A counter-based generator has no state: the number for pixel 17 of
sample 4711 in epoch 3 is a hash of these integers.

Source: the mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), variant 13 of Stafford's constants.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `random_key` works without torch
    from torch import Tensor


def random_key(*parts: int | str) -> int:
    """Computes a signed 64-bit key, such as `random_key(seed, "augment", epoch)`.

    Args:
        *parts: integers and names; any change of value, type or order gives an unrelated key.

    Returns:
        An integer in [-2**63, 2**63).
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def uniform(key: int, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws uniform numbers in [0, 1) on a grid of 2**-24 for each sample.

    Args:
        key: from `random_key`.
        index: (B,) int64, positions of the samples in their data set; the result is on its device.
        shape: of the numbers for each sample.

    Returns:
        (B, *shape) float32.
    """
    return _shift_right(_bits(key, index, shape), 40).float() * 2.0**-24


def normal(key: int, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws standard normal numbers, by the inverse of the distribution function.

    Their last bit may differ between kinds of devices (erfinv's rounding).

    Args:
        key: as in `uniform`.
        index: (B,), as in `uniform`.
        shape: of the numbers for each sample.

    Returns:
        (B, *shape) float32.
    """
    centred = 2 * uniform(key, index, shape) - 1 + 2.0**-24  # symmetric, never +-1
    return math.sqrt(2) * centred.erfinv()


def integers(key: int, index: Tensor, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Draws integers in [0, high).

    Args:
        key: as in `uniform`.
        index: (B,), as in `uniform`.
        high: at most 2**24; the bias is below high * 2**-24.
        shape: of the numbers for each sample.

    Returns:
        (B, *shape) int64.
    """
    return (uniform(key, index, shape).double() * high).long()


def permutation(key: int, size: int) -> Tensor:
    """Draws a permutation of 0 .. size-1, a function of the key: (size,) int64 on the CPU."""
    import torch

    return _bits(key, torch.arange(size), ()).argsort(stable=True)


def _bits(key: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    import torch

    stream = _mix(_mix(index.long()) + key)
    position = torch.arange(math.prod(shape), device=index.device)
    weyl = position * _signed(0x9E3779B97F4A7C15)
    return _mix(stream[:, None] + weyl).view(len(index), *shape)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shifts logically, while torch's `>>` on int64 copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
