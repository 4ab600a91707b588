"""Objects given from Python instead of by name.

Settings are text, so that an object gets a name of the form `raymi.given:NAME`, with the digest of
its content in it. Workers register the objects of their run first; the name then works wherever
`module:name` is accepted.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from raymi.content_digest import content_digest
from raymi.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_objects: dict[str, Any] = {}


def give(value: object, content: object = None) -> str:
    """Registers an object in this process.

    Args:
        value: object; replaces an earlier one of the same content.
        content: what its name describes; None: the object itself.

    Returns:
        Its name, `raymi.given:CLASS_DIGEST` or `raymi.given:FUNCTION_DIGEST`.
    """
    content = value if content is None else content
    name = f"{name_of(content)}_{content_digest(content)[:12]}"
    _objects[name] = value
    return f"{__name__}:{name}"


def name_of(value: object) -> str:
    """Returns the name of a class or function, or of another object's class."""
    return re.sub(r"\W", "", getattr(value, "__name__", type(value).__name__)) or "object"


class Copies:
    """Function that returns copies of a module, with its weights.

    Args:
        module: any module; a copy on the CPU is kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module).cpu()

    def __call__(self, **_: int) -> nn.Module:
        """Returns a copy; arguments of a function that builds networks have no effect."""
        return copy.deepcopy(self._module)


def give_module(module: nn.Module) -> str:
    """Registers the function that returns copies of a module; returns its name."""
    return give(Copies(module), content=module)


def given_in(texts: Iterable[object]) -> dict[str, Any]:
    """Returns the registered objects that settings name, by name, to be sent to workers."""
    modules = (str(text).partition(":") for text in texts)
    names = [name for module, _, name in modules if module == __name__]
    return {name: _objects[name] for name in names if name in _objects}


def label(name: str) -> str:
    """Returns the name of the class or function that a name of `give` or `module:name` is of."""
    module, _, value = name.partition(":")
    return value.rpartition("_")[0] if module == __name__ else value


def register(objects: dict[str, Any]) -> None:
    """Registers the objects of `given_in` in another process."""
    _objects.update(objects)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _objects:
        raise UserError(
            f"{__name__}:{name} was given from Python as an object, and this process does not have "
            "it: repeat the call of raymi.fit that trained the run, or put the code into a module "
            "and give its name, such as model='my.models:make_net'"
        )
    return _objects[name]
