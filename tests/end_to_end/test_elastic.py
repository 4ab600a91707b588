"""A run with a range of workers goes on with fewer when a node is lost, and takes it back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from raymi_command import UNHURRIED, events, start, unhurried_model

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[object]:
    """A head without CPUs, so that it has no place for a worker."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()


def announce_loss_of(node: object, cluster: object) -> None:
    """What a cloud does before it takes a machine back."""
    ray = Path(sys.executable).with_name("ray")
    subprocess.run(
        [
            ray, "drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back",
            "--deadline-remaining-seconds=600",
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )  # fmt: skip


def test_a_lost_node_is_done_without_and_one_that_comes_is_used(
    cluster: object, tmp_path: Path
) -> None:
    cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)
    hurry, epochs = unhurried_model(tmp_path), 60
    process = start(
        tmp_path, "scaling.workers=1..2", f"epochs={epochs}", "data.limit=300", "mi.weight=0",
        "attack.steps=2", UNHURRIED, "validation.steps=1", "evaluation.steps=1",
        "probe.steps=0", "scaling.max_failures=1", "name=elastic", "tracking.enabled=false",
        f"out={tmp_path / 'runs'}", RAY_ADDRESS=cluster.address,
    )  # fmt: skip
    run = tmp_path / "runs" / "elastic"

    def starts() -> list[dict]:
        return events(run, "start")

    def wait(condition: Callable[[], bool], seconds: float) -> float:
        began = time.monotonic()
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - began < seconds, events(run)[-3:]
            time.sleep(0.1)
        return time.monotonic() - began

    wait(lambda: len(events(run, "epoch")) >= 1, 120)
    assert [event["workers"] for event in starts()] == [2]
    cluster.remove_node(second, allow_graceful=False)
    shrunk = wait(lambda: len(starts()) == 2, 150)
    third = cluster.add_node(num_cpus=1)
    grown = wait(lambda: len(starts()) == 3, 150)
    announce_loss_of(third, cluster)
    warned = run / "warnings.log"
    wait(lambda: warned.is_file() and "may be lost" in warned.read_text(), 60)
    hurry.touch()
    out, err = process.communicate(timeout=200)
    print(f"{shrunk:.0f} s to go on with fewer, {grown:.0f} s with more again")

    assert process.returncode == 0, out + err
    assert [event["workers"] for event in starts()] == [2, 1, 2], out
    assert "2 workers on cpu" in out
    assert "1 worker on cpu" in out
    assert "may be lost" in out
    recorded = [event["epoch"] for event in events(run, "epoch")]
    assert sorted(set(recorded)) == list(range(1, epochs + 1)), "no epoch is missing"
    assert len(recorded) <= epochs + 1, "at most the epoch of the loss is done again"
    (paused,) = events(run, "stopped")
    assert starts()[2]["global_step"] == paused["global_step"], "more workers cost no step"
    assert {event["which"] for event in events(run, "evaluation")} == {"last", "best"}
    assert 0.5 < events(run, "evaluation")[-1]["clean"] <= 1.0
