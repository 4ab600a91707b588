"""The Pareto front: what nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence


def on_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of each point, whether no other one is nowhere smaller and somewhere larger; of several that
    are equal, all are on the front.

    Args: points, of the same dimension; larger is better in each.
    """
    return [not any(_beats(other, one) for other in points) for one in points]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
