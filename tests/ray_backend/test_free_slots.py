"""A run says what it waits for, and which GPUs it does not use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ray
import ray.autoscaler.sdk

from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.ray_backend import free_slots, session


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives Ray's answers about the nodes of a cluster: what each has, and what is free in all."""

    def has(*nodes: dict[str, float], free: dict[str, float]) -> None:
        answer = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: answer)
        monkeypatch.setattr(ray, "available_resources", lambda: free)

    requests: list[Any] = []
    monkeypatch.setattr(
        ray.autoscaler.sdk, "request_resources", lambda bundles: requests.append(bundles)
    )
    return has


def nothing() -> None:
    """Ends no wait."""


def test_a_wait_for_other_jobs_is_said_with_what_is_asked_there_and_free(
    cluster: Callable[..., None],
) -> None:
    cluster({"CPU": 4}, {"CPU": 4}, free={"CPU": 1.0})
    said: list[str] = []
    free_slots.print_missing_slots(ScalingConfig(workers=3), {"CPU": 1}, said.append)
    assert said == [
        "waiting for places: asked for scaling.workers=3 with 1 CPU each, the nodes have places "
        "for 8, 1 of them free; the run begins when other jobs end"
    ]


def test_free_places_are_not_awaited(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 4}, free={"CPU": 2.0})
    said: list[str] = []
    free_slots.print_missing_slots(ScalingConfig(workers="2..4"), {"CPU": 1}, said.append)
    assert said == []


def test_a_wait_for_nodes_is_said_and_ends_with_what_is_missing(
    cluster: Callable[..., None],
) -> None:
    cluster({"CPU": 4}, free={"CPU": 4.0})
    scaling, said = ScalingConfig(workers=2, wait_minutes=1e-3), list[str]()
    with pytest.raises(UserError, match="have places for 0"):
        free_slots.wait_for_slots(scaling, {"CPU": 1, "GPU": 1}, said.append, nothing)
    (line,) = said
    assert "asked for scaling.workers=2 with 1 CPU and 1 GPU each" in line
    assert "places for 0, 0 of them free; waiting for nodes, at most 0 minutes more" in line


def test_gpus_that_are_too_few_are_not_left_unused_without_a_word(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 8, "GPU": 2}, free={"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(session, "available_gpus", lambda: ["0", "1"])
    scaling, said = ScalingConfig(workers=4), list[str]()
    assert not session._of_cluster(scaling, said.append, nothing).use_gpu
    assert not session._of_this_machine(scaling, said.append).use_gpu
    assert [line.split(":")[0] for line in said] == ["warning", "warning"]
    assert all("Set scaling.workers=2 to use the GPUs" in line for line in said)


@pytest.mark.parametrize(
    ("workers", "use_gpu", "gpus"), [(2, "auto", 2), (2, "false", 1), (2, "auto", 0)]
)
def test_nothing_is_said_where_gpus_are_used_unwanted_or_absent(
    workers: int,
    use_gpu: str,
    gpus: int,
    cluster: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster({"CPU": 8, "GPU": gpus}, free={"CPU": 8.0, "GPU": float(gpus)})
    monkeypatch.setattr(session, "available_gpus", lambda: [str(k) for k in range(gpus)])
    scaling, said = ScalingConfig(workers=workers, use_gpu=use_gpu), list[str]()
    session._of_cluster(scaling, said.append, nothing)
    session._of_this_machine(scaling, said.append)
    assert said == []
