"""Decisions that workers share."""

from __future__ import annotations

from pathlib import Path

from gloo import run_ranks

from raymi.engine.context import RankZeroFlags


def received_flags(rank: int, world_size: int) -> list[tuple[bool, ...]]:
    """Returns what each rank receives if its own flags are the opposite of rank 0's."""
    flags, rank_zero = RankZeroFlags(), rank == 0
    return [
        flags.broadcast(rank_zero),
        flags.broadcast(not rank_zero, rank_zero),
        flags.broadcast(rank_zero, not rank_zero, rank_zero),
    ]


def test_all_ranks_receive_the_flags_of_rank_zero_in_order(tmp_path: Path) -> None:
    expected = [(True,), (False, True), (True, False, True)]
    assert run_ranks(received_flags, 2, tmp_path=tmp_path) == [expected, expected]
    assert received_flags(0, 1) == expected, "alone, too"
