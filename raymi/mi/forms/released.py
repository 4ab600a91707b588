"""NAMID as in the authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raymi.mi.forms.estimated import EstimatedMI


class Released(EstimatedMI):
    """NAMID as the authors' code computes it."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "weight": 5.0,
        "bound": "dv-released",
        "score": "dot",
        "objective": "released",
        "samples": "selected-released",
        "difference": 0.0,
        "cosine": 1.0,
        "clamp": False,
        "clip_contrast": False,
        "hidden": 2048,
    }
