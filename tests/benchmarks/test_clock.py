"""What is compared takes turns, and seconds count once."""

from __future__ import annotations

import pytest
import torch

from raymi.benchmarks.clock import Clock, Ratio, Stopwatch, interleaved, ratio


class FakeClock(Clock):
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds


def lasting(clock: FakeClock, name: str, seconds: list[float], calls: list[str]):
    """A call that lasts the given seconds, one after the other, the last one for ever."""

    def call() -> None:
        calls.append(name)
        clock.seconds += seconds.pop(0) if len(seconds) > 1 else seconds[0]

    return call


def test_arms_take_turns_after_a_warm_up() -> None:
    clock, calls = FakeClock(), []
    arms = {name: lasting(clock, name, [1.0], calls) for name in "ABC"}
    seconds = interleaved(arms, 3, clock)
    assert "".join(calls) == "AABBCC" + "ABC" * 3
    assert seconds == {name: [1.0, 1.0, 1.0] for name in "ABC"}


def test_long_calls_are_warmed_up_once_and_the_warm_up_is_not_counted() -> None:
    clock, calls = FakeClock(), []
    arms = {"A": lasting(clock, "A", [9.0, 3.0, 4.0, 5.0], calls)}
    assert interleaved(arms, 3, clock) == {"A": [3.0, 4.0, 5.0]}
    assert len(calls) == 4


def test_short_calls_are_repeated_and_counted_as_one() -> None:
    clock, calls = FakeClock(), []
    arms = {
        "A": lasting(clock, "A", [0.125], calls),
        "B": lasting(clock, "B", [1.0], calls),
    }
    assert interleaved(arms, 2, clock, at_least=0.5) == {"A": [0.125, 0.125], "B": [1.0, 1.0]}
    assert "".join(calls) == "AABB" + "AAAAB" * 2


def test_a_ratio_is_taken_round_by_round() -> None:
    # round 2 was slow for both: the ratio of medians would be 3 / 1.5
    found = ratio([2.0, 30.0, 3.0], [1.0, 20.0, 1.5])
    assert found == Ratio(median=2.0, low=1.5, high=2.0)
    assert str(found) == "2.00 (1.50 to 2.00)"
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_a_stopwatch_counts_what_is_inside_of_another_label_once() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)

    class Task:
        def forward(self) -> str:
            clock.seconds += 1
            self.part()
            clock.seconds += 2
            return "done"

        def part(self) -> None:
            clock.seconds += 10

    task = Task()
    watch.watch(task, "forward", "term")
    watch.watch(task, "part", "classifier")
    with watch.measure("rest"):
        clock.seconds += 100
        assert task.forward() == "done"
        task.part()
    clock.seconds += 1000
    assert watch.take() == {"rest": 100.0, "term": 3.0, "classifier": 20.0}
    assert watch.take() == {}


def test_a_stopwatch_closes_what_an_error_leaves() -> None:
    clock = FakeClock()
    watch = Stopwatch(clock)
    with pytest.raises(KeyError), watch.measure("a"), watch.measure("b"):
        raise KeyError
    clock.seconds += 1
    with watch.measure("c"):
        clock.seconds += 2
    assert watch.take()["c"] == 2.0
