"""Operations across workers: their values, and gradients exact against one process."""

from __future__ import annotations

import pytest
import torch
from gloo import run_ranks

from raymi.collectives import Collectives, ProcessGroup

SHARES = [[2, 3], [3, 1, 2], [4, 0, 1], [0, 0, 5]]


def rows(sizes):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(sum(sizes), 4, dtype=torch.float64, generator=generator)


def loss_of_everything(x, group, sizes):
    """Uses every operation in a way that couples all rows: a whole-batch loss on every rank."""
    everyone = group.gather(x.sin(), sizes)  # (B, 4)
    total = group.sum(x.exp().sum(0))  # (4,)
    partial = (everyone[:, None] * x).cos().sum(1)  # (B, 4), over this rank's rows
    mine = group.exchange(partial, sizes).sum(0)  # (b, 4), over all rows
    whole = group.sum((mine * x).square().sum())
    return (everyone @ total).square().sum() + (everyone @ everyone.T).tanh().sum() + whole


def gradients_on_a_rank(rank, world_size, sizes):
    group = ProcessGroup()
    start = sum(sizes[:rank])
    x = rows(sizes)[start : start + sizes[rank]].requires_grad_()
    loss = loss_of_everything(x, group, sizes)
    (grad,) = torch.autograd.grad(loss, x)
    gathered = group.gather(x.detach(), sizes)
    return loss.item(), grad / world_size, gathered, group.rank, group.world_size


@pytest.mark.parametrize("sizes", SHARES, ids=str)
def test_gradients_averaged_over_ranks_equal_those_of_one_process(sizes, tmp_path):
    x = rows(sizes).requires_grad_()
    expected = loss_of_everything(x, Collectives(), [len(x)])
    (expected_grad,) = torch.autograd.grad(expected, x)

    results = run_ranks(gradients_on_a_rank, len(sizes), sizes, tmp_path=tmp_path)
    losses, grads, gathered, ranks, worlds = zip(*results, strict=True)
    assert ranks == tuple(range(len(sizes)))
    assert set(worlds) == {len(sizes)}
    assert losses == pytest.approx([expected.item()] * len(sizes), rel=1e-12)
    torch.testing.assert_close(torch.cat(grads), expected_grad, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(g, rows(sizes)) for g in gathered)


def per_sample_gradients_on_a_rank(rank, world_size, sizes):
    """The other kind of loss: world_size * local sum / global batch, averaged as DDP does."""
    group = ProcessGroup()
    start = sum(sizes[:rank])
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    mine = rows(sizes)[start : start + sizes[rank]]
    loss = group.world_size * (mine @ weight).square().sum() / sum(sizes)
    (grad,) = torch.autograd.grad(loss, weight)
    return group.sum(grad) / world_size


@pytest.mark.parametrize("sizes", SHARES[1:3], ids=str)
def test_the_mean_over_ranks_of_per_sample_losses_is_the_global_mean(sizes, tmp_path):
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad((rows(sizes) @ weight).square().mean(), weight)
    for grad in run_ranks(per_sample_gradients_on_a_rank, len(sizes), sizes, tmp_path=tmp_path):
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=0)


def maximum_on_a_rank(rank, world_size):
    x = torch.tensor([rank, -rank], dtype=torch.float64, requires_grad=True)
    largest = ProcessGroup().max(x)
    return largest.tolist(), largest.requires_grad, x.tolist()


def test_maximum_is_elementwise_without_gradient_and_leaves_its_argument(tmp_path):
    for rank, result in enumerate(run_ranks(maximum_on_a_rank, 3, tmp_path=tmp_path)):
        assert result == ([2.0, 0.0], False, [rank, -rank])


def sums_on_a_rank(rank, world_size):
    group, results = ProcessGroup(), []
    for num in (3, 20_000):  # gathered, and reduced
        x = torch.full((num,), float(rank + 1), requires_grad=True)
        total = group.sum(x)
        (grad,) = torch.autograd.grad((total * (rank + 1)).sum(), x)
        results.append((total.unique().tolist(), grad.unique().tolist(), x.unique().tolist()))
    return results


def test_sums_of_few_and_of_many_numbers_are_exact_and_leave_their_argument(tmp_path):
    for rank, results in enumerate(run_ranks(sums_on_a_rank, 3, tmp_path=tmp_path)):
        assert results == [([6.0], [6.0], [rank + 1])] * 2


def test_one_process_needs_no_torch_distributed():
    group, x = Collectives(), torch.tensor([1.0, 2.0], requires_grad=True)
    assert (group.rank, group.world_size) == (0, 1)
    assert group.gather(x, [2]) is x
    assert group.sum(x) is x
    assert torch.equal(group.exchange(x, [2]), x[None])
    assert not group.max(x).requires_grad
