"""The Pareto front."""

from __future__ import annotations

import random

from raymi.selection.front import on_front


def test_a_point_is_on_the_front_unless_dominated():
    points = [(0.9, 0.3), (0.8, 0.5), (0.8, 0.4), (0.7, 0.5), (0.6, 0.6), (0.5, 0.1)]
    assert on_front(points) == [True, True, False, False, True, False]
    assert on_front([(1.0, 1.0), (1.0, 1.0)]) == [True, True], "equal ones are both on it"
    assert on_front([]) == []


def test_the_front_is_independent_of_order_and_has_the_best_of_each_axis():
    draw = random.Random(0)
    points = [tuple(draw.randrange(5) for _ in range(3)) for _ in range(40)]
    front = {point for point, is_on in zip(points, on_front(points), strict=True) if is_on}
    turned = points[::-1]
    assert front == {p for p, is_on in zip(turned, on_front(turned), strict=True) if is_on}
    for axis in range(3):
        assert max(p[axis] for p in front) == max(p[axis] for p in points)
    worse = [p for p in points if p not in front]
    assert worse
    assert all(any(all(a >= b for a, b in zip(f, p, strict=True)) for f in front) for p in worse)
