"""NAMID, well-posed by construction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raymi.mi.forms.estimated import EstimatedMI


class Bounded(EstimatedMI):
    """Form of NAMID whose estimates and gradients are bounded."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "balance": 0.2,
        "bound": "infonce",
        "score": "cosine",
        "objective": "mim",
        "samples": "all",
        "difference": 1.0,
        "cosine": 0.0,
        "clamp": True,
        "clip_contrast": True,
    }
