"""The user's own network, named on the command line as `package.module:function`.

Where raymi trains it, it is a network of normalised images: raymi normalises. Where a classifier is
only evaluated, the function returns all of it, weights and normalisation included: it gets raw
pixels in [0, 1].
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raymi.errors import UserError, what_happened
from raymi.models.classifier import Classifier
from raymi.models.modes import evaluation_mode


def import_function(name: str) -> Callable[..., nn.Module]:
    """Imports what `package.module:function` names; the working directory is importable.

    Args: name, as the user wrote it.
    Raises: UserError when there is no such module or function, or when the module fails on import.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise UserError(f"model {name!r} must read package.module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # stays: the network may import more when it runs
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"model {name!r}: cannot import module {module_name!r}, {what_happened(error)}."
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
    return function


def find_function(name: str) -> Callable[..., nn.Module]:
    """Imports a function that makes networks to train.

    Args: name, as the user wrote it.
    Returns: a callable that takes num_classes= and image_size=.
    Raises: UserError as `import_function` does, or when the function does not take these two
        arguments.
    """
    function = import_function(name)
    try:
        inspect.signature(function).bind(num_classes=10, image_size=32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model {name!r}: the function is called with num_classes= and image_size=, {error}"
        ) from error
    return function


def source_digest(name: str) -> str | None:
    """SHA-256 in hexadecimal of the file of a function's module; None where it has no such file.

    Raises: UserError as `import_function` does.
    """
    import_function(name)
    module = sys.modules[name.partition(":")[0]]
    try:
        path = inspect.getsourcefile(module)
    except TypeError:  # a module that is built in
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def build_user_net(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Calls the user's function for a network of normalised images.

    Args: name, `package.module:function`; num_classes, K; image_size, height and width in pixels.
    Returns: the network that the function made.
    Raises: UserError when the function fails or returns something else than an nn.Module.
    """
    return _called(name, find_function(name), num_classes=num_classes, image_size=image_size)


def build_user_classifier(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Calls the user's function for a finished classifier of raw images.

    Args: as in `build_user_net`; the function gets those of num_classes= and image_size= that it
        takes, which may be none.
    Returns: what the function made: it maps images (B, 3, H, W) in [0, 1] to logits.
    Raises: UserError as `build_user_net` does.
    """
    function = import_function(name)
    known = {"num_classes": num_classes, "image_size": image_size}
    return _called(name, function, **{k: v for k, v in known.items() if _takes(function, k)})


def _takes(function: Callable[..., nn.Module], argument: str) -> bool:
    try:
        inspect.signature(function).bind_partial(**{argument: None})
    except (TypeError, ValueError):  # ValueError: a signature that nobody knows
        return False
    return True


def _called(name: str, function: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    try:
        net = function(**arguments)
    except (Exception, SystemExit) as error:
        raise UserError(f"model {name!r} cannot be built: {what_happened(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"model {name!r} must return a torch.nn.Module, got {type(net).__name__}")
    return net


def check_output(name: str, classifier: Classifier, num_classes: int, image_size: int) -> None:
    """Runs the network once in eval mode on two grey images, and leaves its train flags alone.

    Args: as in `build_user_net`; classifier, around the user's network.
    Raises: UserError unless the logits are a tensor (2, num_classes).
    """
    device = next(classifier.net.parameters(), classifier.normalize.mean).device
    classifier.normalize.to(device)
    check_logits(name, classifier, num_classes, image_size)


def check_logits(
    name: str, model: nn.Module, num_classes: int, image_size: int, num_images: int = 2
) -> None:
    """Runs a classifier once in eval mode on grey images, and leaves its train flags alone.

    Args: name, for the message; model, images (B, 3, H, W) in [0, 1] to logits; num_classes, K.
    Raises: UserError unless the logits are a tensor (num_images, K).
    """
    x = torch.full((num_images, 3, image_size, image_size), 0.5)
    expected = f"model {name!r} must map images {tuple(x.shape)} to logits"
    expected += f" ({num_images}, {num_classes})"
    x = x.to(next((p.device for p in model.parameters()), x.device))
    try:
        with torch.no_grad(), evaluation_mode(model):
            logits = model(x)
    except (Exception, SystemExit) as error:
        raise UserError(f"{expected}, but {what_happened(error)}") from error
    if not isinstance(logits, torch.Tensor):
        raise UserError(f"{expected}, got {type(logits).__name__}")
    if logits.shape != (num_images, num_classes) or not logits.is_floating_point():
        raise UserError(f"{expected}, got {tuple(logits.shape)} of {logits.dtype}")
