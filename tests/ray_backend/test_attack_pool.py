"""Attack workers return the same numbers for any number of workers, slow or killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pool_work import (
    FIRST,
    MINE,
    SCHEDULE,
    SIZE,
    Found,
    evaluate,
    expect_equal,
    gone_after,
    in_this_process,
    runs,
    users_module,
    waiting,
    work,
)
from ray_head import Head
from raymi_command import environment, wait_for

from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.evaluation.attack_task import AttackTask, StepFailed
from raymi.evaluation.blocks import CLEAN, Step
from raymi.evaluation.scheduler import LocalPool, Pool
from raymi.evaluation.worker_job import Attackers, WorkerJob
from raymi.ray_backend.session import ray_session

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the user's own module."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def mine(folder: Path) -> Any:
    return users_module(folder)


@pytest.fixture(scope="module")
def connected(ray_head: Head) -> Iterator[None]:
    """Connects this process to the head of the test session."""
    with pytest.MonkeyPatch.context() as patch:
        ray_head.join(patch)
        with ray_session(ScalingConfig(workers=2, use_gpu="false")):
            yield
    ray_head.wait_until_idle()


@pytest.fixture
def start(connected: None, folder: Path) -> Iterator[Callable[..., Any]]:
    """Starts pools that close with the test."""
    from raymi.ray_backend.attack_pool import AttackPool

    pools = []

    def start(
        job: WorkerJob, *, workers: int = 2, max_failures: int = 2, on_message: Any = print
    ) -> Pool:
        scaling = ScalingConfig(workers=workers, max_failures=max_failures)
        options = {"use_gpu": False, "import_path": str(folder), "on_message": on_message}
        pools.append(AttackPool(job, scaling, **options))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def expected(mine: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return in_this_process(work(net=mine.Plain()), tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_outcomes_do_not_depend_on_the_number_of_workers(
    workers: int, start: Any, mine: Any, expected: Found, tmp_path: Path
) -> None:
    """The cluster has no slot for a third worker."""
    assert len(expected) == sum(SCHEDULE.steps_by_attack().values())
    assert any(outcome.broken.any() for outcome, _ in expected.values())
    expect_equal(evaluate(start(work(net=mine.Plain()), workers=workers), tmp_path), expected)


def test_the_task_of_a_killed_worker_is_retried(
    start: Any, mine: Any, expected: Found, tmp_path: Path
) -> None:
    messages: list[str] = []
    pool = start(work(net=mine.With(mine.WaitsFor(tmp_path))), on_message=messages.append)
    victims: list[int] = []

    def kill_one() -> None:
        victims.append(waiting(tmp_path)[0])
        os.kill(victims[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_one)
    killer.start()
    expect_equal(evaluate(pool, tmp_path), expected)
    killer.join()
    assert not runs(victims[0])
    (line,) = messages
    assert line.startswith("worker lost (process ")
    assert "): retrying " in line
    assert "\n" not in line


def test_a_slow_worker_does_not_delay_other_tasks(start: Any, mine: Any, tmp_path: Path) -> None:
    slow = mine.With(mine.WaitsFor(tmp_path))
    pool = start(work(slow=slow, net=mine.Plain()))
    pool.submit(FIRST._replace(source="slow"))
    for block in range(1, 4):
        samples = torch.arange(10 * block, 10 * block + 5)
        pool.submit(AttackTask("net", Step(CLEAN, 0, CLEAN, block), samples))
    assert [pool.next().step.block for _ in range(3)] == [1, 2, 3], "in order of submission"
    (tmp_path / "go").touch()
    assert pool.next().step.block == 0


def test_an_interrupt_ends_the_wait_and_the_workers(start: Any, mine: Any, tmp_path: Path) -> None:
    with start(work(net=mine.With(mine.WaitsFor(tmp_path))), workers=1) as pool:
        pool.submit(FIRST)
        interrupted: list[float] = []

        def interrupt() -> None:
            waiting(tmp_path)
            interrupted.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.next()
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - interrupted[0] < 60, "the task alone would never end"
    gone_after(60, *waiting(tmp_path))


def test_errors_are_one_message_each_and_leave_the_worker_usable(start: Any, mine: Any) -> None:
    """Covers an error, out of memory, a classifier that cannot be loaded, and warnings."""
    messages: list[str] = []
    no_memory = mine.Fails("CUDA error: out of memory\nCompile with ...")
    sources = {
        "faulty": mine.With(mine.Fails("shapes do not fit")),
        "large": mine.With(no_memory),
        "missing": mine.CannotBeLoaded(),
        "warns": mine.With(mine.Warns()),
        "net": mine.Plain(),
    }
    pool = start(work(**sources), workers=1, on_message=messages.append)

    def message_of(pool: Pool, source: str, kind: type[Exception]) -> str:
        pool.submit(FIRST._replace(source=source))
        with pytest.raises(kind) as error:
            pool.next()
        return str(error.value)

    line = 1 + MINE.splitlines().index("        raise RuntimeError(self.message)")
    message = message_of(pool, "faulty", StepFailed)
    assert message == (
        f"clean on block 0 of faulty: RuntimeError: shapes do not fit ({mine.__file__}:{line})"
    )
    here = LocalPool(Attackers(work(faulty=sources["faulty"])))
    assert message_of(here, "faulty", StepFailed) == message
    message = message_of(pool, "large", UserError)
    assert re.search(r"block 0 of large: a batch of 10 images .* smaller evaluation.block", message)
    message = message_of(pool, "missing", StepFailed)
    assert re.search(r"block 0 of missing: FileNotFoundError: .*nowhere.pt", message)
    for _ in range(2):
        pool.submit(FIRST._replace(source="warns"))
        pool.next()
    assert messages == ["odd pixels"], "raymi's own warning, once"

    step, x_adv = Step("pgd-3", 0, "pgd-3", 0), torch.rand(SIZE, 3, 12, 12)
    for keep in (True, False):
        pool.submit(AttackTask("net", step, torch.arange(SIZE), x_adv, keep))
    assert torch.equal(pool.next().x_adv, x_adv), "samples are returned on request"
    assert pool.next().x_adv is None


def test_a_task_that_ends_every_worker_fails(start: Any, mine: Any) -> None:
    messages: list[str] = []
    pool = start(work(net=mine.With(mine.Ends())), max_failures=1, on_message=messages.append)
    pool.submit(FIRST)
    message = r"clean on block 0 of net failed after 2 lost workers, .* evaluation.block"
    with pytest.raises(StepFailed, match=message):
        pool.next()
    assert len(messages) == 1


def test_a_job_that_cannot_be_unpickled_is_one_message(start: Any, mine: Any) -> None:
    pool = start(work(net=mine.Pickled()), workers=1)
    pool.submit(FIRST)
    with pytest.raises(StepFailed) as error:
        pool.next()
    assert str(error.value) == "a worker cannot start: ImportError: not on this node"


@pytest.mark.exhaustive
def test_workers_that_never_start_are_one_error(start: Any, mine: Any) -> None:
    messages: list[str] = []
    pool = start(
        work(net=mine.EndsItsWorker()), workers=1, max_failures=1, on_message=messages.append
    )
    pool.submit(FIRST)
    with pytest.raises(StepFailed, match="no worker starts, the last one: "):
        pool.next()
    assert len(messages) == 1


@pytest.mark.exhaustive
def test_a_cluster_without_a_free_slot_is_one_message(
    start: Any, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymi.ray_backend import attack_pool

    holder = start(work(net=mine.Plain()), workers=2)
    for _ in range(2):
        holder.submit(FIRST)
        holder.next()
    monkeypatch.setattr(attack_pool, "READY_SECONDS", 1.0)
    pool = start(work(net=mine.Plain()), workers=1)
    pool.submit(FIRST)
    with pytest.raises(UserError, match=r"no worker was ready for 1 s: .*free slot with 1 CPU"):
        pool.next()


DRIVER = """
import sys
from pathlib import Path
from pool_work import FIRST, users_module, work
from raymi.config import ScalingConfig
from raymi.ray_backend.session import ray_session

folder = Path(sys.argv[1])
mine = users_module(folder)
scaling = ScalingConfig(workers=2, use_gpu="false")
with ray_session(scaling):
    from raymi.ray_backend.attack_pool import AttackPool

    sources = {f"net{block}": mine.With(mine.WaitsFor(folder / str(block))) for block in range(2)}
    with AttackPool(work(**sources), scaling, use_gpu=False, import_path=str(folder)) as pool:
        for name in sources:
            pool.submit(FIRST._replace(source=name))
        pool.next()
"""


@pytest.mark.exhaustive
def test_a_killed_driver_leaves_no_workers(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", tmp_path],
        env=environment(PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: all(list(folder.glob("*.pid")) for folder in folders), driver)
        family = psutil.Process(driver.pid).children(recursive=True)
        workers = {child.pid for child in family if "AttackWorker" in " ".join(child.cmdline())}
        assert workers == {pid for folder in folders for pid in waiting(folder)}
    finally:
        driver.kill()
        driver.communicate()
    gone_after(60, *workers)
