"""Architectures by name, their depths and defaults: all that settings need, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from raymi.errors import UserError, did_you_mean

MIN_IMAGE_SIZE = 8
LARGEST_CIFAR_IMAGE = 64
"""Largest side, in pixels, for which a ResNet has the CIFAR stem."""

ACTIVATIONS = ("relu", "silu")

RESNET_DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of each stage by number of layers."""
VGG_DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of each stage by number of layers."""
SMALL_CNN_DEPTHS = {4: (1, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}
"""Convolutions of each stage by number of layers."""
WIDE_RESNET_DEPTHS = range(10, 1000, 6)


@dataclass(frozen=True)
class Family:
    """Network with its defaults.

    Args:
        summary: one line of description.
        network: its class as "module:class".
        depths: numbers of layers that it can have.
        channels: of each stage, multiplied by `width`.
        depth: default number of layers.
        width: default width.
        has_stem: images over `LARGEST_CIFAR_IMAGE` pixels get the stem of ImageNet networks.
    """

    summary: str
    network: str
    depths: Mapping[int, Sequence[int]] | range
    channels: tuple[int, ...]
    depth: int
    width: float = 1
    has_stem: bool = False

    @property
    def net(self) -> Any:
        """Class of the network; importing it imports torch."""
        return resolve_name(self.network)


_RESNET_CHANNELS = (64, 128, 256, 512)
_WIDE_RESNET = (
    "Wide ResNet, width 10 (depth 6n + 4; width is the widening factor)",
    "raymi.models.wide_resnet:WideResNet",
    WIDE_RESNET_DEPTHS,
    (16, 32, 64),
)
FAMILIES = {
    "small-cnn": Family(
        "3 stages of convolutions for digits on a CPU (depth 4, 7 or 10)",
        "raymi.models.vgg:SmallCNN",
        SMALL_CNN_DEPTHS,
        (16, 32, 32),
        7,
    ),
    "small-resnet": Family(
        "ResNet-10 with 16 to 128 channels, for CIFAR-10 on a CPU (depth 10, 18 or 34)",
        "raymi.models.resnet:ResNet",
        RESNET_DEPTHS,
        (16, 32, 64, 128),
        10,
        has_stem=True,
    ),
    "resnet18": Family(
        "ResNet-18 (depth 10, 18 or 34)",
        "raymi.models.resnet:ResNet",
        RESNET_DEPTHS,
        _RESNET_CHANNELS,
        18,
        has_stem=True,
    ),
    "preact-resnet18": Family(
        "pre-activation ResNet-18 (depth 10, 18 or 34)",
        "raymi.models.preact_resnet:PreActResNet",
        RESNET_DEPTHS,
        _RESNET_CHANNELS,
        18,
        has_stem=True,
    ),
    "vgg19": Family(
        "VGG-19 with BatchNorm (depth 11, 13, 16 or 19)",
        "raymi.models.vgg:VGG",
        VGG_DEPTHS,
        (64, 128, 256, 512, 512),
        19,
    ),
    "wrn-28-10": Family(*_WIDE_RESNET, 28, 10),
    "wrn-34-10": Family(*_WIDE_RESNET, 34, 10),
}
MODELS = {name: family.summary for name, family in FAMILIES.items()}
"""Names of architectures with one line of description; `package.module:function` is also valid."""

LIBRARIES = ("torchvision", "timm")
"""Packages of networks, given as `torchvision:resnet50`; `raymi.models.libraries` builds them."""


def check_model(
    name: str,
    *,
    image_size: int,
    width: float | None = None,
    depth: int | None = None,
    activation: str = "relu",
) -> None:
    """Refuses a model that `build_model` could not build, without allocating it.

    Args:
        name: as in `build_model`.
        image_size: height and width in pixels.
        width: multiplier of the family's channels; None: the family's own.
        depth: number of layers; None: the family's own.
        activation: "relu" or "silu".

    Raises:
        UserError: An unknown name, a depth that the family does not have, a width or an image size
            that is too small, or a `package.module:function` that cannot be imported or called.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(f"image_size must be at least {MIN_IMAGE_SIZE} pixels, got {image_size}")
    if ":" in name:
        from raymi.models.user_model import find_function

        if width is not None or depth is not None or activation != "relu":
            raise UserError(
                f"width, depth and activation do not apply to model {name!r}: set them inside it"
            )
        find_function(name)
        return
    if name not in FAMILIES:
        raise UserError(
            f"unknown model {name!r}: {did_you_mean(name, FAMILIES)} (your own is named "
            "package.module:function, others torchvision:resnet50 or timm:NAME)"
        )
    if activation not in ACTIVATIONS:
        raise UserError(
            f"unknown activation {activation!r}: {did_you_mean(activation, ACTIVATIONS)}"
        )
    if width is not None and not 0 < width < math.inf:
        raise UserError(f"width must be a positive multiplier of channels, got {width}")
    depths = FAMILIES[name].depths
    if depth is not None and depth not in depths:
        raise UserError(f"{name} has no depth {depth}: choose from {_listed(list(depths))}")


def _listed(depths: list[int]) -> str:
    shown = ", ".join(map(str, depths[:6]))
    return shown if len(depths) <= 6 else f"{shown}, ... {depths[-1]}"
