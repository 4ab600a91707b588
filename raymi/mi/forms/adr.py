"""AT on labels refined by an averaged classifier (ADR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raymi.mi.forms.teacher import Teacher


class ADR(Teacher):
    """AT on labels refined by an averaged classifier, with the published schedules.

    Source: Wu et al. 2024 (arXiv 2305.12118).
    """

    title = "ADR"
    names_method = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "weight": "cosine:0.7:0.95",
        "teacher_temperature": "cosine:2.5:2",
        "mix": True,
    }
