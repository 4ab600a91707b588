"""Text of a threat model."""

from __future__ import annotations

from raymi.overrides import as_typed

_NORMS = {"linf": "L_inf", "l2": "L2"}


def threat_text(norm: str, eps: float) -> str:
    """Returns text such as `L_inf eps 8/255`; eps in [0, 1] pixel units."""
    return f"{_NORMS[norm]} eps {as_typed(eps)}"
