"""Image classifiers that take raw pixels: CIFAR-style networks with the normalisation inside.

Names are imported on first use: settings need some of them without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymi.models.classifier import Classifier, Normalize
    from raymi.models.families import MODELS, check_model
    from raymi.models.registry import architecture, build_model

_MODULES = {
    "MODELS": "families",
    "Classifier": "classifier",
    "Normalize": "classifier",
    "architecture": "registry",
    "build_model": "registry",
    "check_model": "families",
}
__all__ = ["MODELS", "Classifier", "Normalize", "architecture", "build_model", "check_model"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
