"""Models by name: what there is, what may be asked of it, and how to build it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymi.errors import UserError
from raymi.models.classifier import Classifier
from raymi.models.preact_resnet import PreActResNet
from raymi.models.resnet import ResNet
from raymi.models.user_model import build_user_net, check_output, find_function
from raymi.models.vgg import VGG, SmallCNN
from raymi.models.wide_resnet import WideResNet

MIN_IMAGE_SIZE = 8


@dataclass(frozen=True)
class Family:
    """A network with its defaults; `width` multiplies `channels`."""

    summary: str
    net: type[ResNet | PreActResNet | WideResNet | VGG]
    channels: tuple[int, ...]
    depth: int
    width: float = 1


RESNET_CHANNELS = (64, 128, 256, 512)
FAMILIES = {
    "small-cnn": Family(
        "3 stages of convolutions for digits on a CPU (depth 4, 7 or 10)", SmallCNN, (16, 32, 32), 7
    ),
    "small-resnet": Family(
        "ResNet-10 with 16 to 128 channels, for CIFAR-10 on a CPU (depth 10, 18 or 34)",
        ResNet,
        (16, 32, 64, 128),
        10,
    ),
    "resnet18": Family("ResNet-18 (depth 10, 18 or 34)", ResNet, RESNET_CHANNELS, 18),
    "preact-resnet18": Family(
        "pre-activation ResNet-18 (depth 10, 18 or 34)", PreActResNet, RESNET_CHANNELS, 18
    ),
    "vgg19": Family(
        "VGG-19 with BatchNorm (depth 11, 13, 16 or 19)", VGG, (64, 128, 256, 512, 512), 19
    ),
    "wrn-28-10": Family(
        "Wide ResNet, width 10 (depth 6n + 4; width is the widening factor)",
        WideResNet,
        (16, 32, 64),
        28,
        10,
    ),
    "wrn-34-10": Family(
        "Wide ResNet, width 10 (depth 6n + 4; width is the widening factor)",
        WideResNet,
        (16, 32, 64),
        34,
        10,
    ),
}
MODELS = {name: family.summary for name, family in FAMILIES.items()}
"""Name to one line of description; `package.module:function` is a name as well."""


def check_model(
    name: str, *, image_size: int, width: float | None = None, depth: int | None = None
) -> None:
    """Refuses what `build_model` could not build, cheaply: nothing is allocated.

    Args: as in `build_model`.
    Raises: UserError on an unknown name, a depth that the family does not have, a width or an image
        size that is too small, or a `package.module:function` that cannot be imported or called.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(f"image_size must be at least {MIN_IMAGE_SIZE} pixels, got {image_size}")
    if ":" in name:
        if width is not None or depth is not None:
            raise UserError(f"width and depth do not apply to model {name!r}: set them inside it")
        find_function(name)
        return
    if name not in FAMILIES:
        close = difflib.get_close_matches(name.lower(), FAMILIES, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(FAMILIES)}"
        raise UserError(
            f"there is no model {name!r}: {remedy} (your own is named package.module:function)"
        )
    if width is not None and not 0 < width < math.inf:
        raise UserError(f"width must be a positive multiplier of channels, got {width}")
    depths = FAMILIES[name].net.DEPTHS
    if depth is not None and depth not in depths:
        raise UserError(f"{name} has no depth {depth}: choose from {_listed(list(depths))}")


def architecture(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    width: float | None = None,
    depth: int | None = None,
) -> dict[str, Any]:
    """What `build_model` needs beside mean and std, in JSON's types.

    A family's own width and depth are written out: the same network has one description, and it
    stays what it is when the defaults change.

    Args: as in `build_model`.
    Raises: UserError as `check_model` does.
    """
    check_model(name, image_size=image_size, width=width, depth=depth)
    if name in FAMILIES:
        family = FAMILIES[name]
        width = float(family.width if width is None else width)
        depth = family.depth if depth is None else depth
    return {
        "name": name,
        "width": width,
        "depth": depth,
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
) -> Classifier:
    """Builds a freshly initialised classifier; the caller seeds torch's global generator.

    Args:
        name: a key of `MODELS`, or `package.module:function`, called with num_classes= and
            image_size= for a network that maps normalised images to logits.
        num_classes: K.
        image_size: height and width in pixels, at least 8.
        mean: of the training images' three channels, in [0, 1] pixels.
        std: of the training images' three channels, in [0, 1] pixels.
        width: multiplies the family's channels (for a Wide ResNet it is the widening factor, 10 by
            default); None is the family's own.
        depth: number of layers; None is the family's own.
    Returns: a classifier of images (B, 3, H, W) in [0, 1] to logits (B, K).
    Raises: UserError as `check_model` does, and when a user's network fails or its logits of two
        images are not (2, K).
    """
    check_model(name, image_size=image_size, width=width, depth=depth)
    if ":" in name:
        classifier = Classifier(build_user_net(name, num_classes, image_size), mean, std)
        check_output(name, classifier, num_classes, image_size)
        return classifier
    arguments = net_arguments(name, num_classes=num_classes, width=width, depth=depth)
    return Classifier(FAMILIES[name].net(**arguments), mean, std)


def net_arguments(
    name: str, *, num_classes: int, width: float | None, depth: int | None
) -> dict[str, Any]:
    """What a family's network is made with.

    Args: as in `build_model`; name, a key of `FAMILIES`.
    """
    family = FAMILIES[name]
    width = family.width if width is None else width
    channels = [max(1, round(width * c)) for c in family.channels]
    depth = family.depth if depth is None else depth
    return {"num_classes": num_classes, "channels": channels, "depth": depth}


def _listed(depths: list[int]) -> str:
    shown = ", ".join(map(str, depths[:6]))
    return shown if len(depths) <= 6 else f"{shown}, ... {depths[-1]}"
