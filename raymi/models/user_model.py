"""The user's own network, named on the command line as `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable

import torch
from torch import nn

from raymi.errors import UserError
from raymi.models.classifier import Classifier


def find_function(name: str) -> Callable[..., nn.Module]:
    """Imports what `package.module:function` names; the working directory is importable.

    Args: name, as the user wrote it.
    Returns: a callable that takes num_classes= and image_size=.
    Raises: UserError when there is no such module or function, when the module fails on import,
        or when the function does not take these two arguments.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UserError(f"model {name!r} must read package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # stays: the network may import more when it runs
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"model {name!r}: cannot import module {module_name!r}, {_what_happened(error)}."
            f" It was looked for in {os.getcwd()} and among the installed packages"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"model {name!r}: no function {function_name!r} in {module.__file__}"
            if function is None
            else f"model {name!r}: {function_name!r} in {module.__file__} is {function!r},"
            " not a function"
        )
    try:
        inspect.signature(function).bind(num_classes=10, image_size=32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model {name!r}: the function is called with num_classes= and image_size=, {error}"
        ) from error
    return function


def build_user_net(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Calls the user's function.

    Args: name, `package.module:function`; num_classes, K; image_size, height and width in pixels.
    Returns: the network that the function made.
    Raises: UserError when the function fails or returns something else than an nn.Module.
    """
    function = find_function(name)
    try:
        net = function(num_classes=num_classes, image_size=image_size)
    except Exception as error:
        raise UserError(f"model {name!r} cannot be built: {_what_happened(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"model {name!r} must return a torch.nn.Module, got {type(net).__name__}")
    return net


def check_output(name: str, classifier: Classifier, num_classes: int, image_size: int) -> None:
    """Runs the network once in eval mode on two grey images, and leaves its train flags alone.

    Args: as in `build_user_net`; classifier, around the user's network.
    Raises: UserError unless the logits are a tensor (2, num_classes).
    """
    expected = f"model {name!r} must map images (2, 3, {image_size}, {image_size}) to logits"
    expected += f" (2, {num_classes})"
    flags = {module: module.training for module in classifier.modules()}
    device = next(classifier.net.parameters(), classifier.normalize.mean).device
    classifier.normalize.to(device)
    x = torch.full((2, 3, image_size, image_size), 0.5, device=device)
    try:
        with torch.no_grad():
            logits = classifier.eval()(x)
    except Exception as error:
        raise UserError(f"{expected}, but {_what_happened(error)}") from error
    finally:
        for module, flag in flags.items():
            module.training = flag
    if not isinstance(logits, torch.Tensor):
        raise UserError(f"{expected}, got {type(logits).__name__}")
    if logits.shape != (2, num_classes):
        raise UserError(f"{expected}, got {tuple(logits.shape)}")


def _what_happened(error: Exception) -> str:
    """The error and the user's line that it came from, since a UserError prints no traceback."""
    ours = (__file__, "<frozen importlib", importlib.__file__, os.path.dirname(torch.__file__))
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
    place = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{place}"
