"""Losses by name: each module of this folder that defines a subclass of `AdversarialLoss`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from raymi.given import label
from raymi.losses.base import AdversarialLoss

Documented = TypeVar("Documented", bound=Callable[..., Any])
_NO_LOSS = ("base", "own", "registry", "settings")


@cache
def losses() -> dict[str, type[AdversarialLoss]]:
    """Returns the classes of raymi's losses by the name of their module."""
    names = [module.name for module in iter_modules([str(Path(__file__).parent)])]
    return {name: _defined_in(name) for name in sorted(names) if name not in _NO_LOSS}


def loss_titles(name: str) -> tuple[str, str]:
    """Returns the names in reports of a loss, alone and with an MI term."""
    if name not in losses():  # the user's own, whose module may be elsewhere
        title = label(name)
        return title, f"NAMID_{title}"
    one = losses()[name]
    return one.title, one.namid_title or f"NAMID_{one.title}"


def lists_losses(documented: Documented) -> Documented:
    """Returns a function or class whose docstring has their names for `raymi.losses.losses()`."""
    text = (documented.__doc__ or "").replace("`raymi.losses.losses()`", " | ".join(losses()))
    documented.__doc__ = text
    return documented


def build_loss(name: str, settings: dict[str, Any]) -> AdversarialLoss:
    """Builds a loss of raymi, or the user's own.

    Raises:
        UserError: see `own_loss`.
    """
    if name in losses():
        return losses()[name](**settings)
    from raymi.losses.own import own_loss  # which imports this module's package

    return own_loss(name, settings)


def _defined_in(name: str) -> type[AdversarialLoss]:
    module = import_module(f"raymi.losses.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, AdversarialLoss)
        and value.__module__ == module.__name__
    )
    return found
