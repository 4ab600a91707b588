"""BatchNorm over the global batch: the same mathematics for any number of workers.

Unlike torch.nn.SyncBatchNorm it also runs on gloo and the CPU, and accepts an empty batch.
With x^ = (x - mean) / sqrt(var + eps), mean and var over all N values of a channel on all ranks:

    y     = weight * x^ + bias
    dL/dx = weight / sqrt(var + eps) * (dy - sum(dy) / N - x^ * sum(dy * x^) / N)

L is the sum of the ranks' losses, both sums run over all ranks, and the gradients of weight and
bias stay local sums, which DDP reduces like any other gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from raymi.collectives import sum_over_ranks


class _GlobalBatchNorm(_BatchNorm):
    """Mix-in: train-mode statistics over all ranks of `group`; otherwise the base class."""

    def __init__(self, *args: Any, group: dist.ProcessGroup | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalises; in train mode every rank of the group must call it, forward and backward.

        Args:
            x: (B, C, ...), B may differ between ranks and may be 0.

        Returns:
            The shape of x.
        """
        if not self.training or not _spans_ranks(self.group):
            return super().forward(x)
        self._check_input_dim(x)
        mean, var, count = _global_moments(x.detach(), self.group)
        if self.track_running_stats:
            self._update_running_statistics(mean, var, count)
        return _Normalize.apply(x, self.weight, self.bias, mean, var, count, self.eps, self.group)

    def __deepcopy__(self, memo: dict[int, Any]) -> _GlobalBatchNorm:
        """Copies the module, as weight averaging does, in the same process group."""
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)], memo[id(self.group)] = copied, self.group  # a group itself cannot be copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def _update_running_statistics(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a cumulative average
            momentum = 1 / float(self.num_batches_tracked)
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        self.running_var.mul_(1 - momentum).add_(unbiased, alpha=momentum)


class GlobalBatchNorm1d(_GlobalBatchNorm, nn.BatchNorm1d):
    """nn.BatchNorm1d on (B, C) or (B, C, L) with statistics over the batches of all ranks."""


class GlobalBatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    """nn.BatchNorm2d on (B, C, H, W) with statistics over the batches of all ranks.

    In eval mode, without torch.distributed and in a group of one it is nn.BatchNorm2d, bit for bit.

    Args:
        *args: as in nn.BatchNorm2d.
        group: process group; None: the default one.
        **kwargs: as in nn.BatchNorm2d.
    """


class GlobalBatchNormAct2d(GlobalBatchNorm2d):
    """timm's BatchNormAct2d, a BatchNorm followed by dropout and activation, over all ranks.

    timm's own class computes the statistics itself, of this rank alone.
    """

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Normalises and activates; returns the shape of x."""
        return self.act(self.drop(super().forward(x)))


_GLOBAL: dict[type, type[_GlobalBatchNorm]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
}


def convert_batchnorm(module: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replaces every nn.BatchNorm1d and nn.BatchNorm2d of a module, in place, by the global one.

    Parameters and buffers are the same tensors under the same names, so optimisers and state dicts
    stay valid; train flags are kept. Of subclasses only timm's BatchNormAct2d is replaced.

    Args:
        module: any module.
        group: process group; None: the default one.

    Returns:
        The module, or its replacement where the module itself is a BatchNorm.
    """
    converted: dict[nn.Module, nn.Module] = {}  # a module under two names stays one
    for name, old in list(module.named_modules(remove_duplicate=False)):
        if isinstance(old, _GlobalBatchNorm):
            old.group = group
        if type(old) not in _GLOBAL and not _is_timm_act(old):
            continue
        assert isinstance(old, _BatchNorm)
        if old not in converted:
            converted[old] = _global_batchnorm(old, group)
        if not name:
            return converted[old]
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, converted[old])
    return module


class _Normalize(torch.autograd.Function):
    """Normalisation with given global moments, through which the gradient flows, too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.group = eps, group
        if x.numel() == 0:
            return x.clone()
        weight, bias = _cast(weight, mean.dtype), _cast(bias, mean.dtype)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        dy = grads[0].to(x.dtype)
        sums = _local_sums(dy, x, mean, var, ctx.eps)
        dx = None
        grad_weight, grad_bias = sums
        if ctx.needs_input_grad[0]:
            mean_dy_xhat, mean_dy = sum_over_ranks(sums, ctx.group) / count
            invstd = (var + ctx.eps).rsqrt()
            scale = invstd if weight is None else weight.to(mean.dtype) * invstd
            slope = -scale * invstd * mean_dy_xhat
            offset = -scale * mean_dy - slope * mean
            # scale * (dy - mean_dy - xhat * mean_dy_xhat), in three passes and one buffer
            slope, offset, scale = (_per_channel(v, x) for v in (slope, offset, scale))
            dx = (x * slope).add_(offset).addcmul_(dy, scale).to(x.dtype)
        if weight is None:
            return dx, None, None, None, None, None, None, None
        grad_weight, grad_bias = grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
        return dx, grad_weight, grad_bias, None, None, None, None, None


def _global_moments(x: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean (C,), biased variance (C,) and number of values per channel over all ranks.

    Each rank gathers (count, mean, sum of squared deviations) and combines them in rank order,
    without differences of large squares and with the same bits on every rank.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979.
    """
    channels = x.shape[1]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    own = x.new_zeros(2 * channels + 1)
    if x.numel() > 0:
        mean, var = _local_moments(x)
        count = x.numel() // channels
        own = torch.cat([x.new_full((1,), count), mean, var * count])
    gathered = own.new_empty(dist.get_world_size(group), len(own))
    dist.all_gather(list(gathered), own, group=group)
    counts, means, deviations = gathered.split([1, channels, channels], dim=1)  # (W, 1), (W, C) x 2
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (deviations + counts * (means - mean) ** 2).sum(0) / count
    return mean, var, count


def _local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.device.type == "cpu":  # three to ten times as fast as var_mean there
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    var, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], correction=0)
    return mean, var


def _local_sums(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Returns the sums of dy * x^ and of dy, the gradients of weight and bias: (2, C)."""
    if x.numel() == 0:
        return mean.new_zeros(2, len(mean))
    backward = torch.ops.aten.native_batch_norm_backward
    ones = torch.ones_like(mean)
    only_parameters = [False, True, True]
    _, dy_xhat, dy_sum = backward(dy, x, ones, mean, var, None, None, False, eps, only_parameters)
    return torch.stack([dy_xhat, dy_sum])


def _global_batchnorm(old: _BatchNorm, group: dist.ProcessGroup | None) -> _GlobalBatchNorm:
    affine, tracked = old.affine, old.track_running_stats
    size = old.num_features
    cls = GlobalBatchNormAct2d if _is_timm_act(old) else _GLOBAL[type(old)]
    new = cls(size, old.eps, old.momentum, affine, tracked, device="meta", group=group)
    new.weight, new.bias = old.weight, old.bias
    new.running_mean, new.running_var = old.running_mean, old.running_var
    new.num_batches_tracked = old.num_batches_tracked
    new.training = old.training
    if isinstance(new, GlobalBatchNormAct2d):
        new.drop, new.act = old.get_submodule("drop"), old.get_submodule("act")
    return new


def _is_timm_act(module: nn.Module) -> bool:
    """Returns whether a module is timm's BatchNormAct2d, without importing timm."""
    cls = type(module)
    return cls.__name__ == "BatchNormAct2d" and cls.__module__.startswith("timm.")


def _spans_ranks(group: dist.ProcessGroup | None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(dtype)


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    return v.view(-1, *[1] * (x.dim() - 2))
