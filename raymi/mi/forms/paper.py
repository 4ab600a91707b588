"""NAMID, Eq. 4-9 as printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raymi.mi.forms.estimated import EstimatedMI


class Paper(EstimatedMI):
    """Eq. 4-9 as printed, whose objectives are unbounded (see `raymi.mi.settings`)."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "weight": 5.0,
        "bound": "dv",
        "score": "dot",
        "objective": "contrast",
        "samples": "selected",
        "difference": 0.1,
        "cosine": 1.0,
        "clamp": False,
        "clip_contrast": False,
        "hidden": 2048,
    }
