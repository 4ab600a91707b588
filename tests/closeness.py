"""Comparison of tensors relative to their largest value."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Asserts that max |ours - expected| <= tolerance * max |expected|.

    A bound for each element would fail on elements that are nearly zero, where sums cancel and only
    rounding is left.

    Args:
        ours: any shape.
        expected: same shape and type.
        tolerance: relative to the largest value of `expected`.
    """
    largest = expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * largest)
