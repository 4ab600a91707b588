"""Distributed natural-adversarial mutual-information training of robust classifiers.

Public names are imported on first use, so that `import raymi` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymi.api.fit import FitResult, fit
    from raymi.api.namid_loss import NAMIDLoss
    from raymi.api.robust_accuracy import RobustAccuracy, robust_accuracy
    from raymi.attacks.pgd import pgd
    from raymi.errors import UserError
    from raymi.mi.bounds import donsker_varadhan, infonce
    from raymi.mi.estimators import LocalDIM

__version__ = "0.1.0"

_MODULES = {
    "FitResult": "api.fit",
    "LocalDIM": "mi.estimators",
    "NAMIDLoss": "api.namid_loss",
    "RobustAccuracy": "api.robust_accuracy",
    "UserError": "errors",
    "donsker_varadhan": "mi.bounds",
    "fit": "api.fit",
    "infonce": "mi.bounds",
    "pgd": "attacks.pgd",
    "robust_accuracy": "api.robust_accuracy",
}
"""Module of each public name."""
__all__ = [
    "FitResult",
    "LocalDIM",
    "NAMIDLoss",
    "RobustAccuracy",
    "UserError",
    "donsker_varadhan",
    "fit",
    "infonce",
    "pgd",
    "robust_accuracy",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
