"""Models and images for tests of attacks."""

from __future__ import annotations

import pytest
import torch
from corrupted_files import write_corrupted_files
from torch import nn

from raymi.data import load_splits
from raymi.data.augment import to_unit
from raymi.models import build_model


@pytest.fixture(scope="module")
def digits():
    splits = load_splits("digits", image_size=16, limit=250)
    return to_unit(splits.train.images), splits.train.labels


@pytest.fixture(scope="module")
def model(digits):
    """A small classifier that has learned a little."""
    x, y = digits
    torch.manual_seed(0)
    model = build_model(
        "small-cnn", num_classes=10, image_size=16, mean=[0.3] * 3, std=[0.35] * 3,
        width=0.5, depth=4,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(40):
        batch = torch.arange(50 * step, 50 * step + 50) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    model.zero_grad()
    return model


@pytest.fixture
def corrupted_files():
    return write_corrupted_files
