"""Laws of the harness that the distributed tests stand on."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks


def sum_of_ranks(rank, world_size, offset):
    total = offset + rank
    dist.all_reduce(total)
    return rank, world_size, total


def fail_on_rank_one(rank, world_size):
    if rank == 1:
        raise KeyError("only here")
    dist.barrier()


def fail_with_a_local_exception(rank, world_size):
    class LocalError(Exception):
        pass

    raise LocalError("cannot be pickled")


def hang(rank, world_size):
    if rank == 1:
        time.sleep(600)


def die(rank, world_size):
    if rank == 1:
        os._exit(3)
    time.sleep(600)


def test_results_are_in_rank_order(tmp_path):
    results = run_ranks(sum_of_ranks, 3, torch.tensor([10.0]), tmp_path=tmp_path)
    assert results == [(rank, 3, torch.tensor([33.0])) for rank in range(3)]


def test_an_exception_is_reraised_with_its_traceback(tmp_path):
    with pytest.raises(KeyError, match="only here") as caught:
        run_ranks(fail_on_rank_one, 2, tmp_path=tmp_path)
    (note,) = caught.value.__notes__
    assert "on rank 1" in note
    assert "in fail_on_rank_one" in note


def test_an_unpicklable_exception_becomes_a_runtime_error(tmp_path):
    with pytest.raises(RuntimeError, match="LocalError: cannot be pickled"):
        run_ranks(fail_with_a_local_exception, 1, tmp_path=tmp_path)


def test_a_hang_fails_after_the_timeout(tmp_path):
    # on a busy machine the other rank may not have ended either
    with pytest.raises(TimeoutError, match=r"ranks \[(0, )?1\] of 2 did not end in 3 s"):
        run_ranks(hang, 2, tmp_path=tmp_path, timeout=3)


def test_a_dead_rank_ends_the_others(tmp_path):
    with pytest.raises(RuntimeError, match="rank 1 died with exit code 3"):
        run_ranks(die, 2, tmp_path=tmp_path)
