"""Local DIM estimators: scores of a sample's output against the pattern at each image location.

An estimator encodes an image-like pattern to features L(u) in (B, H, P), P locations, and logits to
G(z) in (B, H); the score of output i and location p of pattern j is T[i, j, p] = <G(z_i),
L(u_j)_p>.

Source: Hjelm et al. 2019 (Deep InfoMax, local objective); Zhou et al. 2022, Sec. 3.2 and its code.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymi.errors import UserError


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
        x = self.block_nonlinear(x) + self.linear_shortcut(x)
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


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
        for layer in self.layers:
            u = layer(u)
        return self.head(u).flatten(2)


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
        features = self.local(u)
        return F.normalize(features, dim=1) if self.score == "cosine" else features

    def global_features(self, logits: Tensor) -> Tensor:
        """Computes G(z) (B, H) of logits (B, K), divided by the temperature."""
        features = self.global_(logits[:, :, None, None])[:, :, 0, 0]
        if self.score == "cosine":
            features = F.normalize(features, dim=1) / self.temperature
        return features


class MIEstimators(nn.Module):
    """Natural and adversarial estimator; an ablated one is None."""

    def __init__(self, natural: LocalDIM | None, adversarial: LocalDIM | None) -> None:
        super().__init__()
        self.natural = natural
        self.adversarial = adversarial
