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
from collections.abc import Sequence
from typing import Any, cast

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
        (y,) = _normalized([self], [x])
        return y

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


def forward_each(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Calls modules of the same structure, each on its own input, in lockstep.

    Global BatchNorms of the same depth share their calls between workers. Only nn.Sequential is
    entered.

    Args:
        modules: independent modules.
        inputs: one for each.
    """
    if all(type(module) is nn.Sequential for module in modules):
        outputs = list(inputs)
        for layers in zip(*modules, strict=True):
            outputs = forward_each(layers, outputs)
        return outputs
    if all(type(module) in _GLOBAL.values() and module.training for module in modules):
        norms = cast("Sequence[_GlobalBatchNorm]", modules)
        if len({norm.group for norm in norms}) == 1 and _spans_ranks(norms[0].group):
            return _normalized(norms, inputs)
    return [module(x) for module, x in zip(modules, inputs, strict=True)]


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


def _normalized(norms: Sequence[_GlobalBatchNorm], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Normalises an input of each norm with global moments, and updates running statistics."""
    group = norms[0].group
    for norm, x in zip(norms, inputs, strict=True):
        norm._check_input_dim(x)
    moments = _global_moments([x.detach() for x in inputs], group)
    for norm, one in zip(norms, moments, strict=True):
        if norm.track_running_stats:
            norm._update_running_statistics(*one)
    each = zip(norms, inputs, moments, strict=True)
    tensors = [t for norm, x, one in each for t in (x, norm.weight, norm.bias, *one)]
    return list(_Normalize.apply([norm.eps for norm in norms], group, *tensors))


class _Normalize(torch.autograd.Function):
    """Normalisations with given global moments, through which the gradient flows, too.

    Args:
        epsilons: eps of each.
        group: the workers.
        tensors: x, weight, bias, mean, var and count of each.
    """

    @staticmethod
    def forward(
        ctx: Any, epsilons: list[float], group: dist.ProcessGroup | None, *tensors: Any
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.epsilons, ctx.group = epsilons, group
        outputs = []
        for (x, weight, bias, mean, var, _), eps in zip(_six(tensors), epsilons, strict=True):
            if x.numel() == 0:
                outputs.append(x.clone())
                continue
            weight, bias = _cast(weight, mean.dtype), _cast(bias, mean.dtype)
            outputs.append(F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        each = list(zip(_six(ctx.saved_tensors), ctx.epsilons, grads, strict=True))
        sums = [
            _local_sums(dy.to(x.dtype), x, mean, var, eps)
            for (x, _, _, mean, var, _), eps, dy in each
        ]
        totals: Sequence[Tensor | None] = [None] * len(sums)
        if any(ctx.needs_input_grad[2::6]):
            joined = sum_over_ranks(torch.cat(sums, dim=1), ctx.group)
            totals = joined.split([one.shape[1] for one in sums], dim=1)
        results: list[Tensor | None] = []
        for ((x, weight, bias, mean, var, count), eps, dy), own, total in zip(
            each, sums, totals, strict=True
        ):
            dx = None
            if total is not None:
                dx = _input_gradient(dy.to(x.dtype), x, weight, mean, var, eps, total / count)
            of_weight, of_bias = (
                None if parameter is None else grad.to(parameter.dtype)
                for parameter, grad in zip((weight, bias), own, strict=True)
            )
            results += [dx, of_weight, of_bias, None, None, None]
        return None, None, *results


def _six(tensors: Sequence[Any]) -> list[Sequence[Any]]:
    """Returns the tensors of each normalisation."""
    return [tensors[k : k + 6] for k in range(0, len(tensors), 6)]


def _input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    means: Tensor,
) -> Tensor:
    """Computes dL/dx from the global means of dy * x^ and of dy (2, C)."""
    mean_dy_xhat, mean_dy = means
    invstd = (var + eps).rsqrt()
    scale = invstd if weight is None else weight.to(mean.dtype) * invstd
    slope = -scale * invstd * mean_dy_xhat
    offset = -scale * mean_dy - slope * mean
    # scale * (dy - mean_dy - xhat * mean_dy_xhat), in three passes and one buffer
    slope, offset, scale = (_per_channel(v, x) for v in (slope, offset, scale))
    return (x * slope).add_(offset).addcmul_(dy, scale).to(x.dtype)


def _global_moments(
    inputs: Sequence[Tensor], group: dist.ProcessGroup | None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Returns mean (C,), biased variance (C,) and number of values per channel over all ranks.

    Each rank gathers (count, mean, sum of squared deviations) of each input and combines them in
    rank order, without differences of large squares and with the same bits on every rank.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", 1979.
    """
    own = torch.cat([_own_moments(x) for x in inputs])
    gathered = own.new_empty(dist.get_world_size(group), len(own))
    dist.all_gather(list(gathered), own, group=group)
    moments = []
    for part in gathered.split([2 * x.shape[1] + 1 for x in inputs], dim=1):
        channels = part.shape[1] // 2
        counts, means, deviations = part.split([1, channels, channels], dim=1)  # (W, 1), (W, C) x 2
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        var = (deviations + counts * (means - mean) ** 2).sum(0) / count
        moments.append((mean, var, count))
    return moments


def _own_moments(x: Tensor) -> Tensor:
    """Returns count, means and sums of squared deviations of this rank (2 C + 1,)."""
    channels = x.shape[1]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0:
        return x.new_zeros(2 * channels + 1)
    mean, var = _local_moments(x)
    count = x.numel() // channels
    return torch.cat([x.new_full((1,), count), mean, var * count])


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
