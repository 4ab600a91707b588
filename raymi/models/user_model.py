"""User's own network, named on the command line as `package.module:function`.

For training, the function returns a network of normalised images; raymi adds the normalisation. For
evaluation, it returns a whole classifier of raw pixels in [0, 1], with weights and normalisation.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raymi.errors import UserError, what_happened
from raymi.models.classifier import Classifier
from raymi.models.families import LIBRARIES
from raymi.models.libraries import find_library_net, library_version
from raymi.models.modes import evaluation_mode
from raymi.own_code import import_function, takes


def find_function(name: str) -> Callable[..., nn.Module]:
    """Imports a function that builds networks, or finds a library's builder.

    Args:
        name: `package.module:function`, `torchvision:NAME` or `timm:NAME`.

    Returns:
        Function that takes num_classes= and image_size=.

    Raises:
        UserError: As in `import_function` or `find_library_net`, or if the function does not take
            both arguments.
    """
    if name.partition(":")[0] in LIBRARIES:
        return find_library_net(name)
    function = import_function(name, "model")
    try:
        inspect.signature(function).bind(num_classes=10, image_size=32)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"model {name!r}: the function is called with num_classes= and image_size=, {error}"
        ) from error
    return function


def source_digest(name: str) -> str | None:
    """Returns the SHA-256 of the source file of a function's module, in hexadecimal, or None.

    Of a library's network it is that of the library's name and version.

    Raises:
        UserError: As in `import_function`.
    """
    if name.partition(":")[0] in LIBRARIES:
        return hashlib.sha256(library_version(name).encode()).hexdigest()
    import_function(name, "model")
    module = sys.modules[name.partition(":")[0]]
    try:
        path = inspect.getsourcefile(module)
    except TypeError:  # a built-in module
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def build_user_net(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Calls the user's function for a network of normalised images.

    Args:
        name: `package.module:function`.
        num_classes: K.
        image_size: height and width in pixels.

    Returns:
        The network.

    Raises:
        UserError: If the function fails or returns no nn.Module.
    """
    return _called(name, find_function(name), num_classes=num_classes, image_size=image_size)


def build_user_classifier(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Calls the user's function for a whole classifier of raw images.

    Args:
        name: `package.module:function`.
        num_classes: K, passed if the function takes num_classes=.
        image_size: height and width in pixels, passed if the function takes image_size=.

    Returns:
        Classifier that maps images (B, 3, H, W) in [0, 1] to logits.

    Raises:
        UserError: As in `build_user_net`.
    """
    function = import_function(name, "model")
    known = {"num_classes": num_classes, "image_size": image_size}
    return _called(name, function, **{k: v for k, v in known.items() if takes(function, k)})


def _called(name: str, function: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    try:
        net = function(**arguments)
    except (Exception, SystemExit) as error:
        raise UserError(f"model {name!r} cannot be built: {what_happened(error)}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"model {name!r} must return a torch.nn.Module, got {type(net).__name__}")
    return net


def check_output(name: str, classifier: Classifier, num_classes: int, image_size: int) -> None:
    """Checks the logits of two grey images in eval mode; keeps train flags.

    Args:
        name: name of the model, for the message.
        classifier: classifier with the user's network.
        num_classes: K.
        image_size: height and width, in pixels.

    Raises:
        UserError: Unless the logits are a tensor (2, num_classes).
    """
    device = next(classifier.net.parameters(), classifier.normalize.mean).device
    classifier.normalize.to(device)
    check_logits(name, classifier, num_classes, image_size)


def check_logits(
    name: str, model: nn.Module, num_classes: int, image_size: int, num_images: int = 2
) -> None:
    """Checks the logits of grey images in eval mode; keeps train flags.

    Args:
        name: name of the model, for the message.
        model: maps images (B, 3, H, W) in [0, 1] to logits.
        num_classes: K.
        image_size: height and width, in pixels.
        num_images: number of images.

    Raises:
        UserError: Unless the logits are a tensor (num_images, K).
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
