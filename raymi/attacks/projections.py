"""Norm balls: random points, projections and steepest steps, for batches of images in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from raymi import counter_rng

_TINY = 1e-10  # keeps a zero gradient from dividing by zero, as torchattacks does


def largest_distance(eps: float) -> float:
    """Returns the largest distance that counts as within eps, after the rounding of x + delta."""
    return eps * (1 + 1e-5) + 2.0**-23


def l2_norms(x: Tensor) -> Tensor:
    """Returns the Euclidean norm of each sample of x (B, ...), as (B, 1, ..., 1)."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))


def steepest_step(grad: Tensor, norm: str, projection: str = "ball-first") -> Tensor:
    """Returns the step of unit norm that raises the loss most: the gradient's sign or direction.

    Args:
        grad: (B, C, H, W).
        norm: "linf" or "l2".
        projection: order of the following `project`. In L2, "box-first" (TRADES) divides by the
            norm, "ball-first" (torchattacks) by the norm plus 1e-10.

    Returns:
        (B, C, H, W) of unit norm, 0 where the gradient is 0 (TRADES' code steps in a random
        direction there).
    """
    if norm == "linf":
        return grad.sign()
    norms = l2_norms(grad)
    return grad / (norms.clamp(min=_TINY) if projection == "box-first" else norms + _TINY)


def project(
    x: Tensor, x_adv: Tensor, eps: float, norm: str, projection: str = "ball-first"
) -> Tensor:
    """Projects x_adv into the ball around x and into [0, 1].

    In L2 the order matters, since neither is a projection onto both: "ball-first", as in
    torchattacks and most libraries, may end inside of the ball where pixels were clamped;
    "box-first", as in TRADES, lets other pixels grow instead. In L_inf both are equal.

    Args:
        x: (B, C, H, W) images in [0, 1].
        x_adv: (B, C, H, W) perturbed images.
        eps: radius, in pixel units.
        norm: "linf" or "l2".
        projection: "ball-first" or "box-first".

    Returns:
        (B, C, H, W) in [0, 1], within eps of x.
    """
    delta = x_adv - x
    if norm == "l2" and projection == "box-first":
        delta = (x_adv.clamp(0.0, 1.0) - x).renorm(2, 0, eps)
    elif norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / l2_norms(delta).clamp(min=_TINY)).clamp(max=1.0)
    return (x + delta).clamp(0.0, 1.0)


def start_of(kind: str, x: Tensor, eps: float, norm: str, key: int, index: Tensor) -> Tensor | None:
    """Returns the start of the training attack: "ball", "gaussian" or "image" (None: x itself)."""
    if kind == "image":
        return None
    if kind == "gaussian":
        return gaussian_start(x, key, index)
    return random_start(x, eps, norm, key, index)


def random_start(x: Tensor, eps: float, norm: str, key: int, index: Tensor) -> Tensor:
    """Returns a random point of the ball around each image, a function of (key, sample index).

    L_inf: uniform in the ball. L2: uniform direction, uniform radius, as in torchattacks.PGDL2.

    Args:
        x: (B, C, H, W) in [0, 1].
        eps: radius, in pixel units.
        norm: "linf" or "l2".
        key: from `counter_rng.random_key`.
        index: (B,) sample indices.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    shape = tuple(x.shape[1:])
    if norm == "linf":
        noise = (2 * counter_rng.uniform(key, index, shape) - 1) * eps
    else:
        noise = counter_rng.normal(key, index, shape)
        radius = counter_rng.uniform(key ^ 1, index, (1,) * len(shape))
        noise = noise * (eps * radius / l2_norms(noise))
    return (x + noise.to(x.dtype)).clamp(0.0, 1.0)


def gaussian_start(x: Tensor, key: int, index: Tensor, scale: float = 1e-3) -> Tensor:
    """Returns a point close to each image, a function of (key, sample index).

    Args:
        x: (B, C, H, W) images.
        key: as in `random_start`.
        index: as in `random_start`.
        scale: standard deviation of a pixel.

    Returns:
        (B, C, H, W), slightly outside of [0, 1]: the first step projects it.

    Source: the code of TRADES (Zhang et al. 2019), MART and NAMID.
    """
    noise = counter_rng.normal(key, index, tuple(x.shape[1:]))
    return x + scale * noise.to(x.dtype)
