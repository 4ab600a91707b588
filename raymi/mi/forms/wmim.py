"""MI of the whole adversarial image (WMIM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raymi.mi.forms.estimated import EstimatedMI


class WMIM(EstimatedMI):
    """Maximisation of the MI of the whole adversarial image, the paper's baseline."""

    title = "WMIM"
    names_method = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "balance": 0.2,
        "bound": "infonce",
        "score": "cosine",
        "objective": "mim",
        "samples": "all",
        "natural_pattern": "adversarial",
        "difference": 1.0,
        "cosine": 0.0,
        "clamp": True,
        "clip_contrast": True,
        "adversarial": False,
    }
