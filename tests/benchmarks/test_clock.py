"""Timers: calls are measured in turn, nested time counts once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raymi.benchmarks import clock
from raymi.benchmarks.clock import Ratio, Stopwatch, interleaved, ratio


class FakeTime:
    """Clock that tests advance."""

    seconds = 0.0

    def now(self) -> float:
        return self.seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clock, "now", fake.now)
    return fake


def call_lasting(
    time: FakeTime, name: str, seconds: list[float], calls: list[str]
) -> Callable[[], None]:
    """Returns a call that lasts the given seconds, one after the other; the last one repeats."""

    def call() -> None:
        calls.append(name)
        time.seconds += seconds.pop(0) if len(seconds) > 1 else seconds[0]

    return call


def test_calls_are_measured_in_turn_after_a_warm_up(time: FakeTime) -> None:
    calls: list[str] = []
    lasting = {name: call_lasting(time, name, [1.0], calls) for name in "ABC"}
    assert interleaved(lasting, 3) == {name: [1.0, 1.0, 1.0] for name in "ABC"}
    assert "".join(calls) == "AABBCC" + "ABC" * 3


def test_long_calls_are_warmed_up_once(time: FakeTime) -> None:
    calls: list[str] = []
    lasting = {"A": call_lasting(time, "A", [9.0, 3.0, 4.0, 5.0], calls)}
    assert interleaved(lasting, 3) == {"A": [3.0, 4.0, 5.0]}
    assert len(calls) == 4


def test_short_calls_are_repeated_and_averaged(time: FakeTime) -> None:
    calls: list[str] = []
    lasting = {
        "A": call_lasting(time, "A", [0.125], calls),
        "B": call_lasting(time, "B", [1.0], calls),
    }
    assert interleaved(lasting, 2) == {"A": [0.125, 0.125], "B": [1.0, 1.0]}
    assert "".join(calls).endswith("AABAAB")


def test_ratio_is_taken_round_by_round() -> None:
    # round 2 was slow for both: the ratio of medians would be 3 / 1.5
    result = ratio([2.0, 30.0, 3.0], [1.0, 20.0, 1.5])
    assert result == Ratio(median=2.0, low=1.5, high=2.0)
    assert str(result) == "2.00 (1.50 to 2.00)"
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_stopwatch_counts_nested_time_once(time: FakeTime) -> None:
    watch = Stopwatch()

    class Task:
        def forward(self) -> str:
            time.seconds += 1
            self.part()
            time.seconds += 2
            return "done"

        def part(self) -> None:
            time.seconds += 10

    task = Task()
    watch.watch(task, "forward", "term")
    watch.watch(task, "part", "classifier")
    with watch.measure("rest"):
        time.seconds += 100
        assert task.forward() == "done"
        task.part()
    time.seconds += 1000
    assert watch.take() == {"rest": 100.0, "term": 3.0, "classifier": 20.0}
    assert watch.take() == {}


def test_stopwatch_watches_calls_of_one_object(time: FakeTime) -> None:
    class Loss:
        factor = 1

        def __call__(self, seconds: float) -> float:
            time.seconds += seconds
            return self.factor * seconds

    watch, loss, other = Stopwatch(), Loss(), Loss()
    watch.watch_calls(loss, "loss")
    loss.factor = 2
    assert (loss(3.0), other(5.0)) == (6.0, 5.0)
    assert isinstance(loss, Loss)
    assert watch.take() == {"loss": 3.0}


def test_stopwatch_works_after_an_error(time: FakeTime) -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.measure("a"), watch.measure("b"):
        raise KeyError
    time.seconds += 1
    with watch.measure("c"):
        time.seconds += 2
    assert watch.take()["c"] == 2.0
