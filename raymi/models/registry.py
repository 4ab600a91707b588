"""Builders of classifiers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymi.models.classifier import Classifier
from raymi.models.families import FAMILIES, LARGEST_CIFAR_IMAGE, check_model
from raymi.models.user_model import build_user_net, check_output


def architecture(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    width: float | None = None,
    depth: int | None = None,
    activation: str = "relu",
) -> dict[str, Any]:
    """Returns the arguments of `build_model` except mean and std, in JSON's types.

    A family's default width and depth are written out, so that a network has one description, which
    does not change with the defaults.

    Args:
        name: as in `build_model`.
        num_classes: K.
        image_size: height and width in pixels.
        width: multiplier of the family's channels; None: the family's own.
        depth: number of layers; None: the family's own.
        activation: "relu" or "silu".

    Raises:
        UserError: As `check_model` does.
    """
    check_model(name, image_size=image_size, width=width, depth=depth, activation=activation)
    if name in FAMILIES:
        family = FAMILIES[name]
        width = float(family.width if width is None else width)
        depth = family.depth if depth is None else depth
    return {
        "name": name,
        "width": width,
        "depth": depth,
        "activation": activation,
        "num_classes": num_classes,
        "image_size": image_size,
    }


def build_model(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: float | None = None,
    depth: int | None = None,
    activation: str = "relu",
) -> Classifier:
    """Builds and initialises a classifier; the caller seeds torch's global generator.

    Args:
        name: a key of `MODELS`; `torchvision:NAME` or `timm:NAME`; or `package.module:function`,
            called with num_classes= and image_size= for a network that maps normalised images to
            logits.
        num_classes: K.
        image_size: height and width in pixels, at least 8.
        mean: mean of each channel of the training images, in [0, 1] pixel units.
        std: standard deviation of each channel, in [0, 1] pixel units.
        width: multiplier of the family's channels (the widening factor of a Wide ResNet); None: the
            family's own.
        depth: number of layers; None: the family's own.
        activation: "relu" or "silu"; a user's own network has its own.

    Returns:
        A classifier of images (B, 3, H, W) in [0, 1] to logits (B, K).

    Raises:
        UserError: As `check_model` does, and when a user's network fails or its logits of two
            images are not (2, K).
    """
    check_model(name, image_size=image_size, width=width, depth=depth, activation=activation)
    if ":" in name:
        classifier = Classifier(build_user_net(name, num_classes, image_size), mean, std)
        check_output(name, classifier, num_classes, image_size)
        return classifier
    arguments = net_arguments(
        name,
        num_classes=num_classes,
        image_size=image_size,
        width=width,
        depth=depth,
        activation=activation,
    )
    return Classifier(FAMILIES[name].net(**arguments), mean, std)


def net_arguments(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    width: float | None,
    depth: int | None,
    activation: str,
) -> dict[str, Any]:
    """Returns the arguments of the constructor of a family's network.

    Args:
        name: key of `FAMILIES`.
        num_classes: K.
        image_size: height and width in pixels.
        width: multiplier of the family's channels; None: the family's own.
        depth: number of layers; None: the family's own.
        activation: "relu" or "silu".
    """
    family = FAMILIES[name]
    width = family.width if width is None else width
    channels = [max(1, round(width * c)) for c in family.channels]
    arguments = {
        "num_classes": num_classes,
        "channels": channels,
        "depth": family.depth if depth is None else depth,
        "activation": activation,
    }
    if family.has_stem and image_size > LARGEST_CIFAR_IMAGE:
        arguments["imagenet_stem"] = True
    return arguments
