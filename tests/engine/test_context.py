"""What workers agree on."""

from __future__ import annotations

from pathlib import Path

from gloo import run_ranks

from raymi.engine.context import RankZeroFlags


def asked(rank: int, world_size: int) -> list[tuple[bool, ...]]:
    """What each rank hears where its own answers are the opposite of rank 0's."""
    answers, rank_zero = RankZeroFlags(), rank == 0
    return [
        answers.broadcast(rank_zero),
        answers.broadcast(not rank_zero, rank_zero),
        answers.broadcast(rank_zero, not rank_zero, rank_zero),
    ]


def test_all_hear_the_answers_of_rank_zero_each_in_its_place(tmp_path: Path) -> None:
    broadcast = [(True,), (False, True), (True, False, True)]
    assert run_ranks(asked, 2, tmp_path=tmp_path) == [broadcast, broadcast]
    assert asked(0, 1) == broadcast, "alone, too"
