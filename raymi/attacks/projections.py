"""Norm balls: random points, projections and steepest steps, for batches of images in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from raymi import counter_rng

_TINY = 1e-10  # keeps a zero gradient from dividing by zero, as torchattacks does


def l2_norms(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: (B, ...) to (B, 1, ..., 1), to broadcast against x."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))


def steepest_step(grad: Tensor, norm: str) -> Tensor:
    """The unit step that raises the loss most: the sign, or the direction of the gradient.

    Args: grad (B, C, H, W); norm "linf" or "l2".
    Returns: (B, C, H, W) of unit norm, 0 where the gradient is 0.
    """
    return grad.sign() if norm == "linf" else grad / (l2_norms(grad) + _TINY)


def project(x: Tensor, x_adv: Tensor, eps: float, norm: str) -> Tensor:
    """The point of the ball around x nearest to x_adv, then clamped to [0, 1].

    Args: x, x_adv (B, C, H, W); eps in pixel units.
    Returns: (B, C, H, W) in [0, 1], within eps of x.
    """
    delta = x_adv - x
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / l2_norms(delta).clamp(min=_TINY)).clamp(max=1.0)
    return (x + delta).clamp(0.0, 1.0)


def random_start(x: Tensor, eps: float, norm: str, key: int, index: Tensor) -> Tensor:
    """A random point of the ball around each image, as a function of (key, sample index).

    L_inf: uniform in the ball. L2: uniform direction, uniform radius, as in torchattacks.PGDL2.

    Args: x (B, C, H, W) in [0, 1]; eps in pixel units; key from `counter_rng.random_key`; index
        (B,).
    Returns: (B, C, H, W) in [0, 1].
    """
    shape = tuple(x.shape[1:])
    if norm == "linf":
        noise = (2 * counter_rng.uniform(key, index, shape) - 1) * eps
    else:
        noise = counter_rng.normal(key, index, shape)
        radius = counter_rng.uniform(key ^ 1, index, (1,) * len(shape))
        noise = noise * (eps * radius / l2_norms(noise))
    return (x + noise.to(x.dtype)).clamp(0.0, 1.0)
