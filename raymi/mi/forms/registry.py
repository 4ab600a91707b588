"""MI terms by form: each module of this folder that defines a subclass of `MITerm`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from raymi.given import label
from raymi.mi.forms.base import MITerm, TermContext

_NO_FORM = ("base", "estimated", "own", "registry")


@cache
def forms() -> dict[str, type[MITerm]]:
    """Returns the classes of raymi's MI terms by the name of their module."""
    names = [module.name for module in iter_modules([str(Path(__file__).parent)])]
    return {name: _defined_in(name) for name in sorted(names) if name not in _NO_FORM}


def term_class(form: str) -> type[MITerm]:
    """Returns the class of a form, or of the user's own term, whose module it imports.

    Raises:
        UserError: see `own_term`.
    """
    if form in forms():
        return forms()[form]
    from raymi.mi.forms.own import own_term  # which imports this module's package

    found = own_term(form)
    return found if isinstance(found, type) else type(found)


def build_term(context: TermContext) -> MITerm:
    """Builds the term of a phase; the plain `MITerm`, which has none, where MI is off.

    Raises:
        UserError: see `own_term`.
    """
    if not context.mi.enabled:
        return MITerm()
    if context.mi.form in forms():
        return forms()[context.mi.form].build(context)
    from raymi.mi.forms.own import build_own_term

    return build_own_term(context)


def title_of(form: str) -> str:
    """Returns the name in reports of a term; empty: a form of NAMID."""
    return forms()[form].title if form in forms() else label(form)


def names_method(form: str) -> bool:
    """Returns whether the title alone names the method where the loss is AT."""
    return form in forms() and forms()[form].names_method


def _defined_in(name: str) -> type[MITerm]:
    module = import_module(f"raymi.mi.forms.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, MITerm)
        and value.__module__ == module.__name__
    )
    return found
