"""Data sets as uint8 tensors in memory, their batches and their augmentation.

Names are imported on first use: settings need some of them without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymi.data.image_set import ImageSet, Splits
    from raymi.data.load import check_data, load_splits
    from raymi.data.settings import DATASETS

_MODULES = {
    "DATASETS": "settings",
    "ImageSet": "image_set",
    "Splits": "image_set",
    "check_data": "load",
    "load_splits": "load",
}
__all__ = ["DATASETS", "ImageSet", "Splits", "check_data", "load_splits"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
