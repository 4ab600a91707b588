"""What a worker computes from its own columns equals the bound on the whole matrix."""

from __future__ import annotations

import math

import pytest
import torch
from gloo import run_ranks

from raymi.collectives import Collectives, ProcessGroup
from raymi.mi.bounds import donsker_varadhan, infonce
from raymi.mi.matching import match

SHARES = [[6], [3, 3], [4, 2], [3, 1, 2], [5, 0, 1], [0, 6, 0], [1, 1]]
BOUNDS = {"infonce": infonce, "dv": donsker_varadhan}


def features(num, scale=1.0):
    generator = torch.Generator().manual_seed(num)
    outputs = torch.randn(num, 8, dtype=torch.float64, generator=generator)
    patterns = torch.randn(num, 8, 5, dtype=torch.float64, generator=generator)
    return scale * outputs, patterns


def sample_weights(num):
    """Different for each sample, so that gradients of single estimates are told apart."""
    return torch.arange(1, num + 1, dtype=torch.float64)


def whole_matrix(name, num, scale):
    """(B,) bounds, and the gradients of their weighted mean, in one process."""
    outputs, patterns = (t.requires_grad_() for t in features(num, scale))
    estimates = BOUNDS[name](torch.einsum("ih,jhp->ijp", outputs, patterns))
    loss = (sample_weights(num) * estimates).mean()
    return (estimates.detach(), *torch.autograd.grad(loss, (outputs, patterns)))


def own_share(rank, world_size, name, sizes, scale):
    """The same of one worker; gradients as DDP would average them."""
    group = ProcessGroup() if torch.distributed.is_initialized() else Collectives()
    num, own = sum(sizes), slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    outputs, patterns = (t[own].clone().requires_grad_() for t in features(num, scale))
    estimates = match(outputs, patterns, sizes, group).bound(name)
    loss = world_size * (sample_weights(num)[own] * estimates).sum() / num
    grads = torch.autograd.grad(loss, (outputs, patterns))
    return estimates.detach(), *(grad / world_size for grad in grads)


@pytest.mark.parametrize("sizes", SHARES, ids=str)
@pytest.mark.parametrize("name", BOUNDS)
def test_matching_equals_the_bound_on_the_whole_matrix(name, sizes, tmp_path):
    scale = 3.0
    expected = whole_matrix(name, sum(sizes), scale)
    arguments = (name, sizes, scale)
    if len(sizes) == 1:
        shares = [own_share(0, 1, *arguments)]
    else:
        shares = run_ranks(own_share, len(sizes), *arguments, tmp_path=tmp_path)
    for whole, parts in zip(expected, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDS)
def test_large_scores_neither_overflow_nor_underflow(name):
    expected = whole_matrix(name, 5, 1e4)
    computed = own_share(0, 1, name, [5], 1e4)
    for whole, part in zip(expected, computed, strict=True):
        assert part.isfinite().all()
        torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("num", [0, 1])
def test_without_negatives_estimates_and_gradients_are_zero(name, num):
    outputs, patterns = (t.requires_grad_() for t in features(num))
    estimates = match(outputs, patterns, [num], Collectives()).bound(name)
    grads = torch.autograd.grad(estimates.sum(), (outputs, patterns))
    assert estimates.tolist() == [0.0] * num
    assert all((grad == 0).all() and grad.isfinite().all() for grad in grads)


def test_infonce_never_exceeds_log_batch_in_single_precision():
    outputs, patterns = (t.float() for t in features(64, 100.0))
    estimates = match(outputs, 10 * patterns, [64], Collectives()).infonce()
    assert (estimates <= math.log(64)).all()


def counted_on_a_rank(rank, world_size, sizes):
    """Numbers that one rank puts on the wire for one match and its backward."""
    import torch.distributed as dist

    sent, all_reduce, all_gather = [0], dist.all_reduce, dist.all_gather

    def counting_all_reduce(x, *args, **kwargs):
        sent[0] += x.numel()
        return all_reduce(x, *args, **kwargs)

    def counting_all_gather(parts, x, *args, **kwargs):
        sent[0] += x.numel() * len(parts)
        return all_gather(parts, x, *args, **kwargs)

    dist.all_reduce, dist.all_gather = counting_all_reduce, counting_all_gather
    outputs = torch.randn(sizes[rank], 16, requires_grad=True)
    patterns = torch.randn(sizes[rank], 16, 25)
    match(outputs, patterns, sizes, ProcessGroup()).infonce().sum().backward()
    return sent[0]


def test_communication_is_of_the_small_side_only(tmp_path):
    num, hidden, locations = 8, 16, 25
    for sent in run_ranks(counted_on_a_rank, 2, [4, 4], tmp_path=tmp_path):
        # gather and its backward (B, H); maximum, sum and its backward (B, P)
        assert sent == 2 * num * hidden + 3 * num * locations
