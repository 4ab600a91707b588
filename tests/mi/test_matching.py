"""Sums over a worker's own columns give the bound on the whole matrix."""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import pytest
import torch
from gloo import run_ranks
from shards import shard_of_rank
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raymi.collectives import Shard
from raymi.mi.bounds import (
    F_DIVERGENCES,
    donsker_varadhan,
    f_divergence,
    infonce,
    reference_donsker_varadhan,
    reference_infonce,
)
from raymi.mi.estimation import EstimatorTask
from raymi.mi.estimators import LocalDIM, MIEstimators
from raymi.mi.matching import match
from raymi.mi.settings import MIConfig

SHARES = [[6], [3, 3], [4, 2], [3, 1, 2], [5, 0, 1], [0, 6, 0], [1, 1]]
IN_NATS = {"infonce": infonce, "dv": donsker_varadhan}
BOUNDS = {
    **IN_NATS,
    "infonce-released": reference_infonce,
    "dv-released": reference_donsker_varadhan,
    **{name: partial(f_divergence, name=name) for name in F_DIVERGENCES},
}
OVERFLOWING = {"kl", "rkl", "hellinger"}  # exponentials of scores, so their value overflows too


def match_for(name, outputs, patterns, shard, score_memory=math.inf):
    divergence = name if name in F_DIVERGENCES else None
    return match(outputs, patterns, shard, divergence=divergence, score_memory=score_memory)


def features(num, scale=1.0):
    generator = torch.Generator().manual_seed(num)
    outputs = torch.randn(num, 8, dtype=torch.float64, generator=generator)
    patterns = torch.randn(num, 8, 5, dtype=torch.float64, generator=generator)
    return scale * outputs, patterns


def sample_weights(num):
    """Weights that differ by sample, so that gradients of single estimates differ."""
    return torch.arange(1, num + 1, dtype=torch.float64)


def whole_matrix(name, num, scale):
    """(B,) bounds, and the gradients of their weighted mean, in one process."""
    outputs, patterns = (t.requires_grad_() for t in features(num, scale))
    estimates = BOUNDS[name](torch.einsum("ih,jhp->ijp", outputs, patterns))
    loss = (sample_weights(num) * estimates).mean()
    return (estimates.detach(), *torch.autograd.grad(loss, (outputs, patterns)))


def own_share(rank, world_size, name, sizes, scale, score_memory=math.inf):
    """The same of one worker; gradients as DDP would average them."""
    num, own = sum(sizes), slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    outputs, patterns = (t[own].clone().requires_grad_() for t in features(num, scale))
    estimates = match_for(name, outputs, patterns, shard_of_rank(sizes), score_memory).bound(name)
    loss = world_size * (sample_weights(num)[own] * estimates).sum() / num
    grads = torch.autograd.grad(loss, (outputs, patterns))
    return estimates.detach(), *(grad / world_size for grad in grads)


TWO_COLUMNS = 2 * 6 * 5 * 8 / 2**20
"""MiB of the scores of six outputs at five locations of two patterns."""


def own_shares(rank, world_size, sizes, scale):
    """Computes results by bound and memory in one call, since starting processes is slow."""
    return {
        (name, score_memory): own_share(rank, world_size, name, sizes, scale, score_memory)
        for name in BOUNDS
        for score_memory in (math.inf, TWO_COLUMNS, 1e-9)
    }


@pytest.mark.parametrize("sizes", SHARES, ids=str)
def test_matching_equals_the_bound_on_the_whole_matrix(sizes, tmp_path):
    """Compares one part, parts of two columns, and single columns."""
    scale = 3.0
    if len(sizes) == 1:
        shares = [own_shares(0, 1, sizes, scale)]
    else:
        shares = run_ranks(own_shares, len(sizes), sizes, scale, tmp_path=tmp_path)
    for case in shares[0]:
        expected = whole_matrix(case[0], sum(sizes), scale)
        computed = zip(*(share[case] for share in shares), strict=True)
        for whole, parts in zip(expected, computed, strict=True):
            torch.testing.assert_close(
                torch.cat(parts), whole, rtol=1e-11, atol=1e-12, msg=lambda m, c=case: f"{c}: {m}"
            )


LABELS = torch.tensor([0, 1, 0, 2, 1, 1])


def other_classes(labels, scale=3.0):
    """(B,) InfoNCE and DV with negatives of other classes, by loops, and their gradients."""
    outputs, patterns = (t.requires_grad_() for t in features(len(labels), scale))
    scores = torch.einsum("ih,jhp->ijp", outputs, patterns)
    values = []
    for i, label in enumerate(labels):
        negatives = scores[i, labels != label]
        if len(negatives) == 0:
            values.append(torch.zeros(2, dtype=torch.float64))
            continue
        log_mean = negatives.logsumexp(0) - math.log(len(negatives))
        candidates = torch.cat([scores[i, i][None], negatives])
        log_all = candidates.logsumexp(0) - math.log(len(candidates))
        values.append(torch.stack([(scores[i, i] - t).mean() for t in (log_all, log_mean)]))
    values = torch.stack(values)
    weighted = (sample_weights(len(labels))[:, None] * values).sum() / len(labels)
    if not weighted.requires_grad:
        return values, torch.zeros_like(outputs), torch.zeros_like(patterns)
    return values.detach(), *torch.autograd.grad(weighted, (outputs, patterns))


def own_share_of_other_classes(rank, world_size, sizes, labels, score_memory):
    """The same of one worker by `match`; gradients as DDP would average them."""
    num, own = sum(sizes), slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    outputs, patterns = (t[own].clone().requires_grad_() for t in features(num, 3.0))
    shard = shard_of_rank(sizes)
    matching = match(outputs, patterns, shard, score_memory=score_memory, y=labels[own])
    values = torch.stack([matching.bound("infonce"), matching.bound("dv")], dim=1)
    loss = (sample_weights(num)[own, None] * values).sum() / num
    return values.detach(), *torch.autograd.grad(loss, (outputs, patterns))


@pytest.mark.parametrize("score_memory", [math.inf, TWO_COLUMNS])
@pytest.mark.parametrize("labels", [LABELS, torch.zeros_like(LABELS)], ids=["classes", "one class"])
@pytest.mark.parametrize("sizes", [[6], [4, 2], [3, 0, 3]], ids=str)
def test_negatives_of_other_classes_equal_a_loop(sizes, labels, score_memory, tmp_path):
    """A sample without any, as all are where the batch has one class, has value and gradient 0."""
    arguments = (sizes, labels, score_memory)
    if len(sizes) == 1:
        shares = [own_share_of_other_classes(0, 1, *arguments)]
    else:
        shares = run_ranks(own_share_of_other_classes, len(sizes), *arguments, tmp_path=tmp_path)
    for whole, *parts in zip(other_classes(labels), *shares, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-11, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Numbers of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *(t.numel() for t in made)])
        return result


@pytest.mark.parametrize("name", ["infonce", "dv", "kl"])
@pytest.mark.parametrize("columns", [64, 7, 1])
def test_no_tensor_exceeds_score_memory(name, columns):
    num, hidden, locations = 64, 4, 10
    outputs, patterns = torch.randn(num, hidden), torch.randn(num, hidden, locations)
    leaves = [outputs.requires_grad_(), patterns.requires_grad_()]
    budget = columns * num * locations * 4 / 2**20
    with LargestTensor() as watch:
        estimates = match_for(name, *leaves, Shard.alone(num), budget).bound(name)
        torch.autograd.grad(estimates.sum(), leaves)
    assert watch.largest == max(columns * num * locations, patterns.numel())


@pytest.mark.parametrize("name", sorted(BOUNDS.keys() - OVERFLOWING))
def test_large_scores_neither_overflow_nor_underflow(name):
    expected = whole_matrix(name, 5, 1e4)
    computed = own_share(0, 1, name, [5], 1e4)
    for whole, part in zip(expected, computed, strict=True):
        assert part.isfinite().all()
        torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_gradients_are_finite_if_an_own_score_s_exponential_overflows(name):
    outputs, patterns = torch.eye(3), 500 * torch.eye(3)[:, :, None]
    leaves = [outputs.requires_grad_(), patterns.requires_grad_()]
    estimates = match_for(name, *leaves, Shard.alone(3)).bound(name)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(estimates.sum(), leaves))


def test_an_f_divergence_that_was_not_requested_is_refused():
    matching = match(*features(3), Shard.alone(3), divergence="jsd")
    with pytest.raises(AssertionError, match="divergence='kl'"):
        matching.bound("kl")


@pytest.mark.parametrize("name", IN_NATS)
@pytest.mark.parametrize("num", [0, 1])
def test_without_negatives_estimates_and_gradients_are_zero(name, num):
    outputs, patterns = (t.requires_grad_() for t in features(num))
    estimates = match(outputs, patterns, Shard.alone(num)).bound(name)
    grads = torch.autograd.grad(estimates.sum(), (outputs, patterns))
    assert estimates.tolist() == [0.0] * num
    assert all((grad == 0).all() and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", sorted(BOUNDS.keys() - IN_NATS.keys()))
@pytest.mark.parametrize("num", [0, 1])
def test_without_negatives_other_objectives_equal_the_whole_matrix(name, num):
    outputs, patterns = (t.requires_grad_() for t in features(num))
    estimates = match_for(name, outputs, patterns, Shard.alone(num)).bound(name)
    grads = torch.autograd.grad(estimates.sum(), (outputs, patterns))
    assert all(grad.isfinite().all() for grad in grads)
    expected = whole_matrix(name, num, 1.0)[0] if num else torch.zeros(0)
    assert estimates.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_infonce_never_exceeds_log_batch_in_single_precision():
    outputs, patterns = (t.float() for t in features(64, 100.0))
    estimates = match(outputs, 10 * patterns, Shard.alone(64)).infonce()
    assert (estimates <= math.log(64)).all()


def counted_on_a_rank(rank, world_size, sizes, name):
    """Numbers that one rank puts on the wire for one match and its backward."""
    import torch.distributed as dist

    sent, all_reduce, all_gather = [0], dist.all_reduce, dist.all_gather
    all_to_all = dist.all_to_all_single

    def counting_all_reduce(x, *args, **kwargs):
        sent[0] += x.numel()
        return all_reduce(x, *args, **kwargs)

    def counting_all_gather(parts, x, *args, **kwargs):
        sent[0] += x.numel() * len(parts)
        return all_gather(parts, x, *args, **kwargs)

    def counting_all_to_all(received, x, *args, **kwargs):
        sent[0] += x.numel()
        return all_to_all(received, x, *args, **kwargs)

    dist.all_reduce, dist.all_gather = counting_all_reduce, counting_all_gather
    dist.all_to_all_single = counting_all_to_all
    outputs = torch.randn(sizes[rank], 16, requires_grad=True)
    patterns = torch.randn(sizes[rank], 16, 25)
    match_for(name, outputs, patterns, shard_of_rank(sizes)).bound(name).sum().backward()
    return sent[0]


@pytest.mark.parametrize("name", ["infonce", "infonce-released", "kl"])
def test_only_global_features_are_communicated(name, tmp_path):
    num, hidden, locations = 8, 16, 25
    # outputs and their gradients (B, H); partial sums and their gradients (B, P), of which an
    # f-divergence has two
    expected = 2 * num * hidden + (4 if name == "kl" else 2) * num * locations
    assert run_ranks(counted_on_a_rank, 2, [4, 4], name, tmp_path=tmp_path) == [expected] * 2


def test_mi_bound_accepts_every_bound():
    assert set(get_args(MIConfig.model_fields["bound"].annotation)) == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_estimators_learn_with_every_bound(name):
    torch.manual_seed(0)
    critic = LocalDIM(5, 8, hidden=16, base_width=4, temperature=0.5)
    task = EstimatorTask(MIEstimators(critic, None), MIConfig(bound=name))
    x, logits = torch.rand(12, 3, 8, 8), torch.randn(12, 5)
    batch = (x, x, logits, logits, torch.zeros(12, dtype=torch.int64), Shard.alone(12))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss, _ = task(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
