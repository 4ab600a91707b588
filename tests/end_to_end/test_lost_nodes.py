"""Nodes that are lost, and nodes that come: training, an evaluation and a sweep carry on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pool_work import evaluate, expect_equal, in_this_process, users_module, waiting, work
from ray_head import AUTH, RAY
from raymi_command import SLOW_MODEL, events, finish, start, wait_for, write_slow_model

from raymi.config import ScalingConfig
from raymi.ray_backend.session import ray_session
from raymi.tuning.sweep_folder import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = (
    "scaling.workers=1..2", "scaling.max_failures=1", "data.limit=300", "mi.weight=0",
    "attack.steps=2", "validation.steps=1", "evaluation.steps=1", "tracking.enabled=false",
    SLOW_MODEL,
)  # fmt: skip


class Nodes:
    """A cluster whose head has no place for a worker, and its nodes of one CPU."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._there: list[Any] = []
        self.address = self._cluster.address
        self.env = {"RAY_ADDRESS": self.address, **AUTH}

    def add(self) -> Any:
        self._there.append(self._cluster.add_node(num_cpus=1))
        return self._there[-1]

    def lose(self, node: Any) -> None:
        """Kills the processes of a node."""
        self._there.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def announce_loss_of(self, node: Any) -> None:
        """Announces to Ray that a node will be taken away, as a cloud does."""
        subprocess.run(
            [
                RAY, "drain-node", f"--address={self.address}", f"--node-id={node.node_id}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=taken back",
                "--deadline-remaining-seconds=600",
            ],
            check=True, capture_output=True, timeout=200,
        )  # fmt: skip

    def lose_all(self) -> None:
        for node in [*self._there]:
            self.lose(node)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.close()


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    """The module's cluster, without nodes beside its head."""
    yield cluster
    cluster.lose_all()


def epochs_of(run: Path) -> list[int]:
    return [event["epoch"] for event in events(run, "epoch")]


def test_a_run_continues_with_fewer_workers_when_a_node_is_lost(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add()
    lost = nodes.add()
    release, run = write_slow_model(tmp_path), tmp_path / "runs" / "shrunk"
    process = start(
        tmp_path, *SETTINGS, "epochs=6", f"out={run.parent}", "name=shrunk", **nodes.env,
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="3",
    )  # fmt: skip
    wait_for(lambda: epochs_of(run), process)
    nodes.lose(lost)
    wait_for(lambda: len(events(run, "start")) == 2, process)
    release.touch()
    output = finish(process)
    assert [event["workers"] for event in events(run, "start")] == [2, 1], output
    assert sorted(set(epochs_of(run))) == list(range(1, 7)), "no epoch is missing"
    assert len(epochs_of(run)) <= 7, "at most the epoch of the loss is done again"
    assert {event["which"] for event in events(run, "evaluation")} == {"last", "best"}


@pytest.mark.exhaustive
def test_a_run_grows_again_and_heeds_the_notice_of_a_preemption(
    nodes: Nodes, tmp_path: Path
) -> None:
    nodes.add()
    lost = nodes.add()
    release, run, epochs = write_slow_model(tmp_path), tmp_path / "runs" / "elastic", 100

    def starts() -> list[dict]:
        return events(run, "start")

    process = start(
        tmp_path, *SETTINGS, f"epochs={epochs}", f"out={run.parent}", "name=elastic", **nodes.env
    )
    wait_for(lambda: epochs_of(run), process)
    nodes.lose(lost)
    wait_for(lambda: len(starts()) == 2, process)
    third = nodes.add()
    wait_for(lambda: len(starts()) == 3, process)
    nodes.announce_loss_of(third)
    warned = run / "warnings.log"
    wait_for(lambda: warned.is_file() and "may be lost" in warned.read_text(), process)
    release.touch()
    output = finish(process)
    assert [event["workers"] for event in starts()] == [2, 1, 2], output
    assert "2 workers on cpu" in output
    assert "1 worker on cpu" in output
    assert "may be lost" in output
    assert sorted(set(epochs_of(run))) == list(range(1, epochs + 1)), "no epoch is missing"
    assert len(epochs_of(run)) <= epochs + 1, "at most the epoch of the loss is done again"
    (paused,) = events(run, "stopped")
    assert starts()[2]["global_step"] == paused["global_step"], "more workers cost no step"
    assert {event["which"] for event in events(run, "evaluation")} == {"last", "best"}


@pytest.mark.exhaustive
def test_an_evaluation_carries_on_without_a_lost_node_and_uses_a_new_one(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    mine = users_module(tmp_path)
    folders = {name: tmp_path / name for name in ("first", "second")}
    for folder in folders.values():
        folder.mkdir()
    all_work = work(
        net=mine.Plain(),
        **{name: mine.With(mine.WaitsFor(folder)) for name, folder in folders.items()},
    )
    expected = in_this_process(all_work, tmp_path)
    nodes.add()
    lost = nodes.add()
    scaling = ScalingConfig(workers="1..2", use_gpu="false", max_failures=1)
    logged: list[str] = []
    with ray_session(scaling) as resources, ThreadPoolExecutor() as threads:
        from raymi.ray_backend.attack_pool import AttackPool

        with AttackPool(
            all_work,
            scaling,
            use_gpu=resources.use_gpu,
            import_path=str(tmp_path),
            on_message=logged.append,
        ) as pool:
            found = threads.submit(evaluate, pool, folders["first"], "first")
            waiting(folders["first"], 2)
            nodes.lose(lost)
            (folders["first"] / "go").touch()
            expect_equal(found.result(300), expected)
            (line,) = repeated_steps(logged)
            assert line.startswith("worker lost (")
            assert "process" not in line

            nodes.add()
            found = threads.submit(evaluate, pool, folders["second"], "second")
            waiting(folders["second"], 2)
            (folders["second"] / "go").touch()
            expect_equal(found.result(300), expected)
    assert len(repeated_steps(logged)) == 1


def repeated_steps(logged: list[str]) -> list[str]:
    """Returns messages about steps.

    A replacement that Ray places on the lost node, before it knows of the loss, has one, too.
    """
    return [line for line in logged if "): retrying " in line]


@pytest.mark.exhaustive
def test_the_loss_of_a_node_costs_a_sweep_no_trial(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    lost = nodes.add()
    release, path = write_slow_model(tmp_path), tmp_path / "sweeps" / "n"
    process = start(
        tmp_path, "space=smoke", "tune.trials=4", "epochs=3", "data.limit=200",
        "data.image_size=8", "attack.steps=2", SLOW_MODEL, "tune.scheduler=none",
        "tune.finalists=0", "tune.test_suite=none", "tracking.enabled=false",
        f"out={path.parent}", "name=n", module="raymi.tune", **nodes.env,
    )  # fmt: skip
    first_two = [path / "trials" / number for number in ("0000", "0001")]

    def number_of(kind: str) -> list[int]:
        return sorted(len(events(trial, kind)) for trial in first_two)

    wait_for(lambda: all(number_of("epoch")), process)
    nodes.lose(lost)
    wait_for(lambda: number_of("start") == [1, 2], process)
    release.touch()
    finish(process)
    assert [trial.state for trial in Sweep(path).study()] == ["finished"] * 4
    assert number_of("start") == [1, 2], "one of them continued from its checkpoint"
