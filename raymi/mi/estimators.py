"""Local DIM estimators: scores of a sample's output against the pattern at each image location.

An estimator encodes an image-like pattern to features L(u) in (B, H, P), P locations, and logits to
G(z) in (B, H); the score of output i and location p of pattern j is T[i, j, p] = <G(z_i),
L(u_j)_p>.

Source: Hjelm et al. 2019 (Deep InfoMax, local objective); Zhou et al. 2022, Sec. 3.2 and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.errors import UserError
from raymi.models.batchnorm import forward_each


class Block1x1(nn.Module):
    """Two 1x1 convolutions, a shortcut that starts near the identity, and LayerNorm over H.

    It maps (B, in_channels, h, w) to (B, hidden, h, w), normalised at each location.
    """

    def __init__(self, in_channels: int, hidden: int) -> None:
        super().__init__()
        self.block_nonlinear = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 1),
        )
        self.linear_shortcut = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm = nn.LayerNorm(hidden)
        with torch.no_grad():
            self.linear_shortcut.weight.uniform_(-0.01, 0.01)
            self.linear_shortcut.weight[:, :, 0, 0].fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, hidden, h, w)."""
        (y,) = _blocks([self], [x])
        return y


def _blocks(blocks: Sequence[Block1x1], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Calls blocks in lockstep, see `forward_each`."""
    hidden = forward_each([block.block_nonlinear for block in blocks], inputs)
    sums = [
        h + block.linear_shortcut(x) for block, h, x in zip(blocks, hidden, inputs, strict=True)
    ]
    return [
        block.norm(y.movedim(1, -1)).movedim(-1, 1) for block, y in zip(blocks, sums, strict=True)
    ]


class LocalEncoder(nn.Module):
    """Stride-2 convolutions and a 1x1 block, from (B, C, h, w) to (B, hidden, P).

    P = (h // 2**depth) * (w // 2**depth) locations.
    """

    def __init__(self, channels: int, base_width: int, depth: int, hidden: int) -> None:
        super().__init__()
        widths = [channels, *(base_width * 2**k for k in range(depth))]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(inplace=True),
            )
            for c_in, c_out in pairwise(widths)
        )
        self.head = Block1x1(widths[-1], hidden)

    def forward(self, u: Tensor) -> Tensor:
        """Maps (B, C, h, w) to (B, hidden, P)."""
        (features,) = _encoded([self], [u])
        return features


def _encoded(encoders: Sequence[LocalEncoder], patterns: Sequence[Tensor]) -> list[Tensor]:
    """Calls encoders of the same depth in lockstep, see `forward_each`."""
    for layers in zip(*(encoder.layers for encoder in encoders), strict=True):
        patterns = forward_each(layers, patterns)
    return [y.flatten(2) for y in _blocks([encoder.head for encoder in encoders], patterns)]


class LocalDIM(nn.Module):
    """Estimator of one kind of MI, between an image-like pattern and the logits.

    Args:
        num_classes: K, length of a logit vector.
        image_size: side of the square patterns, in pixels.
        hidden: H, units of the feature space.
        base_width: channels of the first convolution.
        depth: number of stride-2 convolutions.
        score: "dot", the plain product of LayerNormed features, reaches +-H; "cosine" divides it by
            both norms and by `temperature`, so that |T| <= 1 / temperature for any H.
        temperature: temperature of cosine scores.
        channels: channels of the pattern.

    Raises:
        UserError: The image is too small for the depth.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        *,
        hidden: int = 2048,
        base_width: int = 64,
        depth: int = 2,
        score: str = "cosine",
        temperature: float = 0.1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size < 2**depth:
            raise UserError(
                f"mi.depth must be at most {image_size.bit_length() - 1} for {image_size}-pixel "
                f"images, got {depth}: each level halves the image"
            )
        self.local = LocalEncoder(channels, base_width, depth, hidden)
        self.global_ = Block1x1(num_classes, hidden)
        self.score = score
        self.temperature = temperature

    def local_features(self, u: Tensor) -> Tensor:
        """Computes L(u) (B, H, P) of a pattern (B, C, h, w) in pixel units."""
        (features,) = local_features_of([self], [u])
        return features

    def global_features(self, logits: Tensor) -> Tensor:
        """Computes G(z) (B, H) of logits (B, K), divided by the temperature."""
        (features,) = global_features_of([self], [logits])
        return features


def local_features_of(estimators: Sequence[LocalDIM], patterns: Sequence[Tensor]) -> list[Tensor]:
    """Computes `local_features` of a pattern of each estimator, with the communication of one."""
    features = _encoded([estimator.local for estimator in estimators], patterns)
    return [
        F.normalize(y, dim=1) if estimator.score == "cosine" else y
        for estimator, y in zip(estimators, features, strict=True)
    ]


def global_features_of(estimators: Sequence[LocalDIM], outputs: Sequence[Tensor]) -> list[Tensor]:
    """Computes `global_features` of logits of each estimator, with the communication of one."""
    images = [logits[:, :, None, None] for logits in outputs]
    features = [y[:, :, 0, 0] for y in _blocks([one.global_ for one in estimators], images)]
    return [
        F.normalize(y, dim=1) / estimator.temperature if estimator.score == "cosine" else y
        for estimator, y in zip(estimators, features, strict=True)
    ]


class MIEstimators(nn.Module):
    """Natural and adversarial estimator; an ablated one is None."""

    def __init__(self, natural: LocalDIM | None, adversarial: LocalDIM | None) -> None:
        super().__init__()
        self.natural = natural
        self.adversarial = adversarial
