"""What workers agree on."""

from __future__ import annotations

from pathlib import Path

from gloo import run_ranks

from raymi.engine.context import Answers


def asked(rank: int, world_size: int) -> list[tuple[bool, ...]]:
    """What each rank hears where its own answers are the opposite of rank 0's."""
    answers, rank_zero = Answers(), rank == 0
    return [
        answers.of_rank_zero(rank_zero),
        answers.of_rank_zero(not rank_zero, rank_zero),
        answers.of_rank_zero(rank_zero, not rank_zero, rank_zero),
    ]


def test_all_hear_the_answers_of_rank_zero_each_in_its_place(tmp_path: Path) -> None:
    of_rank_zero = [(True,), (False, True), (True, False, True)]
    assert run_ranks(asked, 2, tmp_path=tmp_path) == [of_rank_zero, of_rank_zero]
    assert asked(0, 1) == of_rank_zero, "alone, too"
