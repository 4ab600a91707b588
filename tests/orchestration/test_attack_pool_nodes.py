"""An evaluation does without a node that is lost, and uses one that comes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pool_work import evaluate, expect_equal, in_this_process, users_module, waiting, work

from raymi.config import ScalingConfig
from raymi.orchestration.ray_session import ray_session

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs, so that it has no place for a worker."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def test_a_lost_node_is_done_without_and_one_that_comes_is_used(
    cluster: Any, tmp_path: Path
) -> None:
    mine = users_module(tmp_path)
    folders = {name: tmp_path / name for name in ("first", "second")}
    for folder in folders.values():
        folder.mkdir()
    all_work = work(
        net=mine.Plain(),
        **{name: mine.With(mine.WaitsFor(folder)) for name, folder in folders.items()},
    )
    expected = in_this_process(all_work, tmp_path)
    cluster.add_node(num_cpus=1)
    lost = cluster.add_node(num_cpus=1)
    scaling = ScalingConfig(workers="1..2", use_gpu="false", max_failures=1)
    told: list[str] = []
    with ray_session(scaling) as resources, ThreadPoolExecutor() as threads:
        from raymi.orchestration.attack_pool import AttackPool

        with AttackPool(
            all_work,
            scaling,
            use_gpu=resources.use_gpu,
            import_path=str(tmp_path),
            tell=told.append,
        ) as pool:
            found = threads.submit(evaluate, pool, folders["first"], "first")
            waiting(folders["first"], 2)
            cluster.remove_node(lost, allow_graceful=False)
            (folders["first"] / "go").touch()
            expect_equal(found.result(200), expected)
            (lost_step,) = made_again(told)
            assert lost_step.startswith("a worker was lost, as ")
            assert "process" not in lost_step

            cluster.add_node(num_cpus=1)
            found = threads.submit(evaluate, pool, folders["second"], "second")
            waiting(folders["second"], 2)
            (folders["second"] / "go").touch()
            expect_equal(found.result(200), expected)
    assert len(made_again(told)) == 1


def made_again(told: list[str]) -> list[str]:
    """What was told of steps; beside that, a worker in place of the lost one may itself be lost
    before it begins, where Ray places it before it knows that the node is gone."""
    return [line for line in told if line.endswith("is made again")]
