"""A run reports missing slots and unused GPUs."""

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
    """Fakes the nodes of a cluster and its free resources."""

    def set_nodes(*nodes: dict[str, float], free: dict[str, float]) -> None:
        answer = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr(ray, "nodes", lambda: answer)
        monkeypatch.setattr(ray, "available_resources", lambda: free)

    requests: list[Any] = []
    monkeypatch.setattr(
        ray.autoscaler.sdk, "request_resources", lambda bundles: requests.append(bundles)
    )
    return set_nodes


def no_check() -> None:
    """Does not end the wait."""


def test_a_wait_for_other_jobs_prints_requested_and_free_slots(
    cluster: Callable[..., None],
) -> None:
    cluster({"CPU": 4}, {"CPU": 4}, free={"CPU": 1.0})
    messages: list[str] = []
    free_slots.print_missing_slots(ScalingConfig(workers=3), {"CPU": 1}, messages.append)
    assert messages == [
        "waiting for slots: scaling.workers=3 with 1 CPU each, the nodes have slots for 8, 1 of "
        "them free; the run starts when other jobs end"
    ]


def test_free_slots_print_nothing(cluster: Callable[..., None]) -> None:
    cluster({"CPU": 4}, free={"CPU": 2.0})
    messages: list[str] = []
    free_slots.print_missing_slots(ScalingConfig(workers="2..4"), {"CPU": 1}, messages.append)
    assert messages == []


def test_a_wait_for_nodes_prints_the_missing_slots_and_ends(
    cluster: Callable[..., None],
) -> None:
    cluster({"CPU": 4}, free={"CPU": 4.0})
    scaling, messages = ScalingConfig(workers=2, wait_minutes=1e-3), list[str]()
    with pytest.raises(UserError, match="have slots for 0"):
        free_slots.wait_for_slots(scaling, {"CPU": 1, "GPU": 1}, messages.append, no_check)
    (line,) = messages
    assert "scaling.workers=2 with 1 CPU and 1 GPU each" in line
    assert "slots for 0, 0 of them free; waiting up to 0 more minutes for nodes" in line


def test_unused_gpus_are_a_warning(
    cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster({"CPU": 8, "GPU": 2}, free={"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(session, "available_gpus", lambda: ["0", "1"])
    scaling, messages = ScalingConfig(workers=4), list[str]()
    assert not session._of_cluster(scaling, messages.append, no_check).use_gpu
    assert not session._of_this_machine(scaling, messages.append).use_gpu
    assert [line.split(":")[0] for line in messages] == ["warning", "warning"]
    assert all("Set scaling.workers=2 to use the GPUs" in line for line in messages)


@pytest.mark.parametrize(
    ("workers", "use_gpu", "gpus"), [(2, "auto", 2), (2, "false", 1), (2, "auto", 0)]
)
def test_used_unwanted_or_absent_gpus_are_no_warning(
    workers: int,
    use_gpu: str,
    gpus: int,
    cluster: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster({"CPU": 8, "GPU": gpus}, free={"CPU": 8.0, "GPU": float(gpus)})
    monkeypatch.setattr(session, "available_gpus", lambda: [str(k) for k in range(gpus)])
    scaling, messages = ScalingConfig(workers=workers, use_gpu=use_gpu), list[str]()
    session._of_cluster(scaling, messages.append, no_check)
    session._of_this_machine(scaling, messages.append)
    assert messages == []
