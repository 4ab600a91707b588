"""User's own code, named as `package.module:name` on the command line."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from raymi.errors import UserError, what_happened


def import_function(name: str, kind: str) -> Callable[..., Any]:
    """Imports a function or class, also from the working directory.

    Args:
        name: `package.module:name`.
        kind: its purpose, which begins messages: "model", "optimiser".

    Raises:
        UserError: If the module or function is missing, or the module fails on import.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UserError(f"{kind} {name!r} must read package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # not undone: the code may import more when it runs
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{kind} {name!r}: cannot import module {module_name!r}, {what_happened(error)}."
            f" Searched in {os.getcwd()} and in the installed packages"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"{kind} {name!r}: no function {function_name!r} in {module.__file__}"
            if function is None
            else f"{kind} {name!r}: {function_name!r} in {module.__file__} is {function!r},"
            " not a function"
        )
    return function


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Returns whether a function can be called with the keyword; False for unknown signatures."""
    try:
        inspect.signature(function).bind_partial(**{argument: None})
    except (TypeError, ValueError):  # ValueError: unknown signature
        return False
    return True
