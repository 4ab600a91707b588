"""Networks of torchvision and timm by name, untrained: `torchvision:resnet50`, `timm:NAME`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from torch import nn

from raymi.errors import UserError, did_you_mean


def torchvision_net(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Builds a classifier of torchvision, for images of this size where it has one size."""
    from torchvision import models

    sized: dict[str, Any] = {"image_size": image_size} if name.startswith("vit_") else {}
    return models.get_model(name, weights=None, num_classes=num_classes, **sized)


def timm_net(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Builds a classifier of timm, for images of this size where it has one size."""
    import timm

    facts = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = (
        {"img_size": image_size} if facts is not None and facts.fixed_input_size else {}
    )
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **sized)


BUILDERS: dict[str, Callable[[str, int, int], nn.Module]] = {
    "torchvision": torchvision_net,
    "timm": timm_net,
}
"""Functions of (name, num_classes, image_size) by package."""


def find_library_net(name: str) -> Callable[..., nn.Module]:
    """Returns the builder of a library's network.

    Args:
        name: `torchvision:NAME` or `timm:NAME`.

    Returns:
        Function that takes num_classes= and image_size=.

    Raises:
        UserError: The package is not installed, or has no such network.
    """
    package, _, net = name.partition(":")
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"model {name!r} needs {package}, which is not installed ({error}): pip install "
            f"{package}"
        ) from None
    known = _names(package)
    if net not in known:
        raise UserError(
            f"model {name!r}: {package} {version(package)} has no {net!r}: "
            f"{did_you_mean(net, known)}"
        )
    return partial(BUILDERS[package], net)


def library_version(name: str) -> str:
    """Returns package and version of a library's network, such as "timm 1.0.31"."""
    package = name.partition(":")[0]
    return f"{package} {version(package)}"


def _names(package: str) -> list[str]:
    """Returns the names of all image classifiers of a package."""
    if package == "timm":
        import timm

        return timm.list_models()
    from torchvision import models

    return models.list_models(module=models)
