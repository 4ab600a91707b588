"""Laws of the global BatchNorm: N gloo ranks equal one process on the concatenated batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gloo import run_ranks
from torch import nn

from raymi.models import build_model
from raymi.models.batchnorm import (
    GlobalBatchNorm1d,
    GlobalBatchNorm2d,
    convert_batchnorm,
    forward_each,
)
from raymi.models.running_statistics import running_statistics_frozen

GLOBAL = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_norm(kind, channels=4, dtype=torch.float64, **options):
    norm = kind(channels, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(5)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=dtype) + 0.5)
    return norm


def two_forwards_one_backward(norm, x1, x2, frozen=False):
    """Outputs, gradients and buffers after a step whose loss sees two forwards of the norm."""
    x1, x2 = x1.clone().requires_grad_(), x2.clone().requires_grad_()
    y1 = norm(x1)
    if frozen:
        with running_statistics_frozen(norm):
            y2 = norm(x2)
    else:
        y2 = norm(x2)
    loss = (y1 * x1.detach().sin()).sum() + (y2**3).sum() + y1.abs().sum()
    loss.backward()
    return {
        "samples": [y1.detach(), y2.detach(), x1.grad, x2.grad],
        "sums": [p.grad for p in norm.parameters()],
        "buffers": list(norm.buffers()),
    }


def step_on_rank(rank, world_size, kind, options, shares1, shares2, frozen):
    norm = make_norm(GLOBAL[kind], dtype=shares1[0].dtype, **options)
    return two_forwards_one_backward(norm, shares1[rank], shares2[rank], frozen)


def split(x, sizes):
    """Equal tensors for spawned ranks: each its own storage, in x's memory format."""
    return [part.clone() for part in x.split(sizes)]


CASES = [
    (nn.BatchNorm2d, (4, 3, 5), {}, False),
    (nn.BatchNorm2d, (4, 3, 5), {}, True),
    (nn.BatchNorm2d, (4, 1, 1), {"affine": False, "momentum": None}, False),
    (nn.BatchNorm2d, (4, 2, 2), {"track_running_stats": False, "eps": 0.1}, False),
    (nn.BatchNorm1d, (4,), {"momentum": 0.3}, False),
    (nn.BatchNorm1d, (4, 6), {}, False),
]
"""Kind, shape of a sample, options, and whether the second forward has frozen statistics."""


def two_batches(shape, num):
    generator = torch.Generator().manual_seed(num)
    draw = torch.randn(2, num, *shape, dtype=torch.float64, generator=generator)
    return draw * 3 + 2


def cases_on_rank(rank, world_size, sizes):
    """The step of each case on this rank's share of its batches."""
    found = []
    for kind, shape, options, frozen in CASES:
        shares = [x.split(sizes)[rank] for x in two_batches(shape, sum(sizes))]
        norm = make_norm(GLOBAL[kind], **options)
        found.append(two_forwards_one_backward(norm, *shares, frozen))
    return found


@pytest.mark.parametrize("sizes", [(3, 2), (6, 0), (2, 0, 5), (1, 1, 1)], ids=str)
def test_ranks_equal_one_process_on_the_concatenated_batch(tmp_path, sizes):
    found = run_ranks(cases_on_rank, len(sizes), sizes, tmp_path=tmp_path)
    for (kind, shape, options, frozen), *ranks in zip(CASES, *found, strict=True):
        batches = two_batches(shape, sum(sizes))
        expected = two_forwards_one_backward(make_norm(kind, **options), *batches, frozen)
        for i, whole in enumerate(expected["samples"]):
            torch.testing.assert_close(torch.cat([r["samples"][i] for r in ranks]), whole, **EXACT)
        for i, whole in enumerate(expected["sums"]):
            torch.testing.assert_close(sum(r["sums"][i] for r in ranks), whole, **EXACT)
        for rank in ranks:
            torch.testing.assert_close(rank["buffers"], expected["buffers"], **EXACT)
            assert all(map(torch.equal, rank["buffers"], ranks[0]["buffers"]))


def test_channels_last_is_kept_and_gives_the_same_numbers(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    expected = two_forwards_one_backward(make_norm(nn.BatchNorm2d), x, x)
    shares = split(x.contiguous(memory_format=torch.channels_last), (3, 2))
    ranks = run_ranks(step_on_rank, 2, nn.BatchNorm2d, {}, shares, shares, False, tmp_path=tmp_path)
    for i, whole in enumerate(expected["samples"]):
        parts = [rank["samples"][i] for rank in ranks]
        assert all(part.is_contiguous(memory_format=torch.channels_last) for part in parts)
        torch.testing.assert_close(torch.cat(parts), whole, **EXACT)


def test_float32_survives_a_mean_far_from_zero(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 8, 8) + 3000
    expected = F.batch_norm(x.double(), None, None, training=True)
    options = {"affine": False, "momentum": 1.0}
    shares = split(x, (4, 2))
    ranks = run_ranks(
        step_on_rank, 2, nn.BatchNorm2d, options, shares, shares, False, tmp_path=tmp_path
    )
    outputs = torch.cat([rank["samples"][0] for rank in ranks])
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=2e-3)
    var = x.double().var((0, 2, 3))
    torch.testing.assert_close(ranks[0]["buffers"][1].double(), var, rtol=1e-4, atol=0)


def autocast_step(model, x):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    (y.float() ** 3).sum().backward()
    return y.detach(), x.grad, model[0].weight.grad, model[1].weight.grad


def autocast_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())


def autocast_step_on_rank(rank, world_size, shares):
    return autocast_step(convert_batchnorm(autocast_model()), shares[rank])


def test_bfloat16_autocast_equals_one_process_within_bfloat16(tmp_path):
    torch.manual_seed(1)
    x = torch.randn(8, 3, 10, 10)
    y, x_grad, conv_grad, norm_grad = autocast_step(autocast_model(), x)
    ranks = run_ranks(autocast_step_on_rank, 2, split(x, (5, 3)), tmp_path=tmp_path)
    assert all(rank[0].dtype == y.dtype for rank in ranks)
    near = {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), y, **near)
    torch.testing.assert_close(torch.cat([rank[1] for rank in ranks]), x_grad, rtol=0.1, atol=0.3)
    scale = conv_grad.abs().max()
    torch.testing.assert_close((ranks[0][2] + ranks[1][2]) / scale, conv_grad / scale, **near)
    torch.testing.assert_close(ranks[0][3] + ranks[1][3], norm_grad, rtol=0.05, atol=1)


def small_resnet():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(
            "small-resnet", num_classes=3, image_size=8, mean=(0.5,) * 3, std=(0.3,) * 3, width=0.25
        )
    return model.double()


def train_step(model, x, y):
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y, reduction="sum").backward()
    return x.grad, [p.grad for p in model.parameters()], list(model.buffers())


def train_step_on_rank(rank, world_size, xs, ys, ddp):
    model = convert_batchnorm(small_resnet())
    if ddp:  # leaves the mean gradient on every rank: their sum over ranks is what it was
        model = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    return train_step(model, xs[rank], ys[rank])


@pytest.mark.parametrize("ddp", [False, True])
@pytest.mark.parametrize("sizes", [(4, 3), (5, 0, 2)])
def test_a_converted_network_s_step_equals_one_process(tmp_path, sizes, ddp):
    torch.manual_seed(0)
    x = torch.rand(7, 3, 8, 8, dtype=torch.float64)
    y = torch.arange(7) % 3
    x_grad, gradients, buffers = train_step(small_resnet(), x, y)
    shares = split(x, sizes), split(y, sizes)
    ranks = run_ranks(train_step_on_rank, len(sizes), *shares, ddp, tmp_path=tmp_path)
    close = {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), x_grad, **close)
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(sum(rank[1][i] for rank in ranks), gradient, **close)
    for rank in ranks:
        torch.testing.assert_close(rank[2], buffers, **close)


def norms_in_groups(rank, world_size, x):
    groups = [dist.new_group([0, 1]), dist.new_group([2])]
    group = groups[rank // 2]
    norm = convert_batchnorm(make_norm(nn.BatchNorm2d), group)
    twin = copy.deepcopy(norm)
    outputs = norm(x[rank : rank + 1]), twin(x[rank : rank + 1])
    convert_batchnorm(norm)
    everyone = norm(x[rank : rank + 1])
    norm.eval()
    plain = make_norm(nn.BatchNorm2d).eval()
    plain.load_state_dict(norm.state_dict())
    return *outputs, everyone, torch.equal(norm(x), plain(x))


def test_a_copy_stays_in_its_process_group(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    pair, alone = (make_norm(nn.BatchNorm2d)(part).detach() for part in x.split((2, 1)))
    expected = torch.cat([pair, alone])
    ranks = run_ranks(norms_in_groups, 3, x, tmp_path=tmp_path)
    for i in range(2):
        torch.testing.assert_close(torch.cat([rank[i] for rank in ranks]), expected, **EXACT)
    everyone = torch.cat([rank[2] for rank in ranks])
    torch.testing.assert_close(everyone, make_norm(nn.BatchNorm2d)(x), **EXACT)
    assert all(rank[3] for rank in ranks)


@pytest.mark.parametrize("train", [False, True])
def test_without_torch_distributed_it_is_batchnorm_bit_for_bit(train):
    torch.manual_seed(0)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    plain, same = (make_norm(kind).train(train) for kind in (nn.BatchNorm2d, GlobalBatchNorm2d))
    expected, got = (two_forwards_one_backward(norm, x, x + 1) for norm in (plain, same))
    for key, tensors in expected.items():
        assert all(map(torch.equal, tensors, got[key]))


def test_conversion_keeps_tensors_names_flags_and_sharing():
    shared = nn.BatchNorm1d(2)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4, eps=0.1, momentum=None, affine=False).eval(),
        nn.ModuleDict({"a": shared, "b": shared, "c": nn.BatchNorm2d(5)}),
        nn.BatchNorm3d(2),
    )
    tensors = model.state_dict(keep_vars=True)
    assert convert_batchnorm(model) is model
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[name] is tensors[name] for name in tensors)
    assert type(model[1]) is GlobalBatchNorm2d
    assert (model[1].eps, model[1].momentum, model[1].affine) == (0.1, None, False)
    assert not model[1].training
    assert model[2]["c"].training
    assert type(model[2]["a"]) is GlobalBatchNorm1d
    assert model[2]["a"] is model[2]["b"]
    assert type(model[3]) is nn.BatchNorm3d


def test_a_bare_batchnorm_is_replaced_and_a_subclass_is_not():
    class Special(nn.BatchNorm2d):
        pass

    assert type(convert_batchnorm(nn.BatchNorm2d(3))) is GlobalBatchNorm2d
    assert type(convert_batchnorm(Special(3))) is Special


def test_a_converted_model_exports_with_a_dynamic_batch():
    model = convert_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.rand(3, 3, 8, 8),), dynamic_shapes=({0: batch},))
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("convert", [False, True])
def test_frozen_statistics_are_unchanged_with_train_mode_output(convert):
    model = small_resnet()
    if convert:
        convert_batchnorm(model)
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    with running_statistics_frozen(model):
        frozen = model(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(frozen, model(x))
    moved = [k for k, v in model.state_dict().items() if not torch.equal(before[k], v)]
    assert len(moved) == 3 * sum("num_batches_tracked" in name for name in before)


def test_frozen_statistics_do_not_affect_eval_mode():
    model = small_resnet().eval()
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    with running_statistics_frozen(model):
        assert torch.equal(model(x), expected)


def fail_while_frozen(model):
    with running_statistics_frozen(model):
        assert not model[0].track_running_stats
        raise ZeroDivisionError


def test_frozen_statistics_are_restored_after_an_exception():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ZeroDivisionError):
        fail_while_frozen(model)
    assert [norm.track_running_stats for norm in model] == [True, False]


def pairs_on_rank(rank, world_size, lockstep):
    """Outputs, gradients and buffers of two converted networks, called together or in turn."""
    torch.manual_seed(0)
    networks = [
        nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()) for width in (4, 7)
    ]
    inputs = [torch.randn(3, 3, 5, 5) for _ in range(2 * world_size)][2 * rank : 2 * rank + 2]
    for network in networks:
        convert_batchnorm(network)
    if lockstep:
        outputs = forward_each(networks, inputs)
    else:
        outputs = [network(x) for network, x in zip(networks, inputs, strict=True)]
    sum((k + 1) * y.square().mean() for k, y in enumerate(outputs)).backward()
    tensors = [y.detach() for y in outputs]
    for network in networks:
        tensors += [p.grad for p in network.parameters()] + list(network.buffers())
    return tensors


def test_networks_in_lockstep_give_the_same_bits_as_in_turn(tmp_path):
    together, in_turn = (
        run_ranks(pairs_on_rank, 3, lockstep, tmp_path=tmp_path) for lockstep in (True, False)
    )
    for mine, expected in zip(together, in_turn, strict=True):
        assert all(map(torch.equal, mine, expected))
