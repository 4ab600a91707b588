"""Digest of the content of a Python object: its code and its data.

Pickles differ between processes for the same class of a notebook, so that the object itself is
read: byte code of functions, attributes of instances, values of tensors and arrays.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Path)
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_SKIPPED = {
    *("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__"),
    *("__signature__", "__slotnames__"),  # which pydantic, and a copy of an instance, add
}
"""Attributes of a class that do not change what it does; `__pydantic_...__` hold ids of objects."""


def content_digest(value: object) -> str:
    """Returns the SHA-256, in hexadecimal, of the code and data that an object consists of.

    Code of installed libraries and of raymi counts by name only, and so do objects without a
    `__dict__`. The byte code depends on the version of Python.

    Args:
        value: function, class, instance, module of torch, container or plain value.
    """
    digest = _Digest()
    digest.add(value)
    return digest.sha.hexdigest()


class _Digest:
    """Hash over an object and all that it refers to; each of them is read once."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self._seen: dict[int, tuple[int, object]] = {}  # keeps objects, and so their ids, alive

    def add(self, value: object) -> None:
        if isinstance(value, _PLAIN):
            self._write(type(value).__name__, repr(value))
        elif id(value) in self._seen:
            self._write("seen", self._seen[id(value)][0])
        else:
            self._seen[id(value)] = (len(self._seen), value)
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self._write("mapping", len(value))
            self._add_all(item for pair in value.items() for item in pair)
        elif isinstance(value, (list, tuple)):
            self._write(type(value).__name__, len(value))
            self._add_all(value)
        elif isinstance(value, (set, frozenset)):
            self._write("set", sorted(content_digest(item) for item in value))
        elif hasattr(value, "__array__") and hasattr(value, "dtype"):
            self._add_array(value)
        elif isinstance(value, CodeType):
            self._add_code(value)
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, MethodType):
            self._add_all((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._add_all((value.func, value.args, value.keywords))
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, ModuleType):
            self._write("module", value.__name__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__)
        elif isinstance(value, property):
            self._add_all((value.fget, value.fset))
        else:
            self._write("instance")
            self.add(type(value))
            self.add(getattr(value, "__dict__", None))

    def _add_all(self, values: Iterable[object]) -> None:
        for value in values:
            self.add(value)

    def _add_array(self, value: Any) -> None:
        """Adds a tensor or an array."""
        if hasattr(value, "detach"):
            import torch

            tensor = value.detach().cpu().contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            data = value.tobytes()
        self._write("array", value.dtype, tuple(value.shape))
        self.sha.update(data)

    def _add_code(self, code: CodeType) -> None:
        self._write("code", code.co_code.hex(), code.co_names, code.co_varnames)
        self._add_all(constant for constant in code.co_consts)

    def _add_function(self, function: FunctionType) -> None:
        """Adds code, defaults, closure and the globals that the code names."""
        self._write("function", function.__qualname__)
        if _is_installed(function.__module__):
            self._write(function.__module__)
            return
        self._add_code(function.__code__)
        self._add_all((function.__defaults__, function.__kwdefaults__))
        self._add_all(inspect.getclosurevars(function).nonlocals.values())
        for name in _names(function.__code__):
            if name in function.__globals__:
                self._write(name)
                self.add(function.__globals__[name])

    def _add_class(self, cls: type) -> None:
        self._write("class", cls.__qualname__)
        if _is_installed(cls.__module__):
            self._write(cls.__module__)
            return
        self._add_all(cls.__bases__)
        for name, member in sorted(vars(cls).items()):
            if name not in _SKIPPED and not name.startswith("__pydantic_"):
                self._write(name)
                self.add(member)
        for name, field in getattr(cls, "__pydantic_fields__", {}).items():
            self._write("field", name)
            self.add(field.default)

    def _write(self, *parts: object) -> None:
        self.sha.update(repr(parts).encode())


def _names(code: CodeType) -> list[str]:
    """Returns the names that code and the functions within it may look up in globals."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return [*code.co_names, *(name for one in inner for name in _names(one))]


def _is_installed(module: str | None) -> bool:
    """Returns whether a module belongs to Python, to raymi or to an installed package."""
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if module == "__main__":
        return False
    if str(module).partition(".")[0] == __name__.partition(".")[0]:
        return True
    return file is None or str(file).startswith(_INSTALLED)
