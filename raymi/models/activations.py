"""Activation functions of raymi's networks by name."""

from __future__ import annotations

import torch.nn.functional as F

ACTIVATIONS = {"relu": F.relu, "silu": F.silu}
"""Functions of (x, inplace=True); `raymi.models.families` has their names without torch."""
