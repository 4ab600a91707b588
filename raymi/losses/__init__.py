"""Adversarial losses and their settings; a loss is imported on first use, as it needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymi.losses.adversarial import at_loss, mart_loss, trades_loss

__all__ = ["at_loss", "mart_loss", "trades_loss"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from raymi.losses import adversarial

    return getattr(adversarial, name)
