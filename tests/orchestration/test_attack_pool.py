"""Workers of an evaluation may be one or many, slow, killed or never there: the numbers are the
same; what cannot be done ends in one clear error."""

from __future__ import annotations

import os
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
from raymi_command import environment, wait_for

from raymi.config import ScalingConfig
from raymi.errors import UserError
from raymi.evaluation.blocks import CLEAN, Step
from raymi.evaluation.run import InThisProcess, Pool
from raymi.evaluation.steps import StepFailed, Task
from raymi.evaluation.work import Attackers, Work
from raymi.orchestration.ray_session import ray_session

pytestmark = pytest.mark.slow  # real runs of Ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user's own module is."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def mine(folder: Path) -> Any:
    return users_module(folder)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with ray_session(ScalingConfig(workers=2, use_gpu="false")):
        yield


@pytest.fixture
def start(ray_here: None, folder: Path) -> Iterator[Callable[..., Any]]:
    """Starts a pool, which ends with the test."""
    from raymi.orchestration.attack_pool import AttackPool

    pools = []

    def start(work: Work, *, workers: int = 2, max_failures: int = 2, tell: Any = print) -> Pool:
        scaling = ScalingConfig(workers=workers, max_failures=max_failures)
        pools.append(AttackPool(work, scaling, use_gpu=False, import_path=str(folder), tell=tell))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def expected(mine: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return in_this_process(work(net=mine.Plain()), tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_finds_the_same_bits(
    workers: int, start: Any, mine: Any, expected: Found, tmp_path: Path
) -> None:
    """For the third one there is no place."""
    assert len(expected) == sum(SCHEDULE.steps_by_attack().values())
    assert any(outcome.broken.any() for outcome, _ in expected.values())
    expect_equal(evaluate(start(work(net=mine.Plain()), workers=workers), tmp_path), expected)


def test_a_killed_worker_costs_time_and_nothing_else(
    start: Any, mine: Any, expected: Found, tmp_path: Path
) -> None:
    told: list[str] = []
    pool = start(work(net=mine.With(mine.WaitsFor(tmp_path))), tell=told.append)
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
    (line,) = told
    assert "a worker was lost, as its process" in line
    assert line.endswith("is made again")
    assert "\n" not in line


def test_a_slow_worker_holds_no_other_steps(start: Any, mine: Any, tmp_path: Path) -> None:
    slow = mine.With(mine.WaitsFor(tmp_path))
    pool = start(work(slow=slow, net=mine.Plain()))
    pool.submit(FIRST._replace(subject="slow"))
    for block in range(1, 4):
        samples = torch.arange(10 * block, 10 * block + 5)
        pool.submit(Task("net", Step(CLEAN, 0, CLEAN, block), samples))
    assert [pool.next().step.block for _ in range(3)] == [1, 2, 3], "in order of submission"
    (tmp_path / "go").touch()
    assert pool.next().step.block == 0


def test_an_interrupt_is_heard_at_once_and_workers_are_gone(
    start: Any, mine: Any, tmp_path: Path
) -> None:
    with start(work(net=mine.With(mine.WaitsFor(tmp_path))), workers=1) as pool:
        pool.submit(FIRST)
        heard: list[float] = []

        def interrupt() -> None:
            waiting(tmp_path)
            heard.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=interrupt).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.next()
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - heard[0] < 5
    gone_after(5, *waiting(tmp_path))


def test_the_users_error_is_one_message_with_the_users_line(
    start: Any, mine: Any, folder: Path
) -> None:
    pool = start(work(net=mine.With(mine.Fails("shapes do not fit"))), workers=1)
    pool.submit(FIRST)
    with pytest.raises(StepFailed) as error:
        pool.next()
    line = 1 + MINE.splitlines().index("        raise RuntimeError(self.message)")
    assert str(error.value) == (
        "clean on block 0 of net: RuntimeError: shapes do not fit "
        f"({folder / 'pool_mine.py'}:{line})"
    )
    here = InThisProcess(Attackers(work(net=mine.With(mine.Fails("shapes do not fit")))))
    here.submit(FIRST)
    with pytest.raises(StepFailed) as in_process:
        here.next()
    assert str(in_process.value) == str(error.value)


def test_warnings_of_raymis_own_reach_the_driver_once(start: Any, mine: Any) -> None:
    told: list[str] = []
    pool = start(work(net=mine.With(mine.Warns())), workers=1, tell=told.append)
    for _ in range(2):
        pool.submit(FIRST)
        pool.next()
    assert told == ["odd pixels"]


def test_samples_come_back_where_they_are_asked_for(start: Any, mine: Any) -> None:
    """Those that were made elsewhere, here."""
    pool, x_adv = start(work(net=mine.Plain()), workers=1), torch.rand(SIZE, 3, 12, 12)
    step = Step("pgd-3", 0, "pgd-3", 0)
    for keep in (True, False):
        pool.submit(Task("net", step, torch.arange(SIZE), x_adv, keep))
    assert torch.equal(pool.next().x_adv, x_adv)
    assert pool.next().x_adv is None


def test_lack_of_memory_names_the_setting(start: Any, mine: Any) -> None:
    fails = mine.Fails("CUDA error: out of memory\nCompile with ...")
    pool = start(work(net=mine.With(fails)), workers=1)
    pool.submit(FIRST)
    with pytest.raises(UserError, match=r"block 0 of net: 10 images .* smaller evaluation.block"):
        pool.next()


def test_a_classifier_that_cannot_be_loaded_is_one_message(start: Any, mine: Any) -> None:
    pool = start(work(net=mine.CannotBeLoaded()), workers=1)
    pool.submit(FIRST)
    with pytest.raises(StepFailed, match=r"block 0 of net: FileNotFoundError: .*nowhere.pt"):
        pool.next()


def test_a_step_that_ends_every_worker_is_given_up(start: Any, mine: Any) -> None:
    told: list[str] = []
    pool = start(work(net=mine.With(mine.Ends())), max_failures=1, tell=told.append)
    pool.submit(FIRST)
    message = r"clean on block 0 of net was given up after 2 lost workers, .* evaluation.block"
    with pytest.raises(StepFailed, match=message):
        pool.next()
    assert len(told) == 1


def test_what_workers_cannot_unpickle_is_one_message(start: Any, mine: Any) -> None:
    pool = start(work(net=mine.Pickled()), workers=1)
    pool.submit(FIRST)
    with pytest.raises(StepFailed) as error:
        pool.next()
    assert str(error.value) == "a worker cannot begin: ImportError: not on this node"


def test_workers_that_never_begin_are_not_started_for_ever(start: Any, mine: Any) -> None:
    told: list[str] = []
    pool = start(work(net=mine.EndsItsWorker()), workers=1, max_failures=1, tell=told.append)
    pool.submit(FIRST)
    with pytest.raises(StepFailed, match="workers are lost before they begin, the last one as "):
        pool.next()
    assert len(told) == 1


def test_no_place_for_any_worker_is_one_message(
    start: Any, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymi.orchestration import attack_pool

    holder = start(work(net=mine.Plain()), workers=2)
    for _ in range(2):
        holder.submit(FIRST)
        holder.next()
    monkeypatch.setattr(attack_pool, "READY_SECONDS", 1.0)
    pool = start(work(net=mine.Plain()), workers=1)
    pool.submit(FIRST)
    with pytest.raises(UserError, match=r"no worker was ready for 1 s: .*free place with 1 CPU"):
        pool.next()


DRIVER = """
import sys
from pathlib import Path
from pool_work import FIRST, users_module, work
from raymi.config import ScalingConfig
from raymi.orchestration.ray_session import ray_session

folder = Path(sys.argv[1])
mine = users_module(folder)
scaling = ScalingConfig(workers=2, use_gpu="false")
with ray_session(scaling):
    from raymi.orchestration.attack_pool import AttackPool

    subjects = {f"net{block}": mine.With(mine.WaitsFor(folder / str(block))) for block in range(2)}
    with AttackPool(work(**subjects), scaling, use_gpu=False, import_path=str(folder)) as pool:
        for name in subjects:
            pool.submit(FIRST._replace(subject=name))
        pool.next()
"""


@pytest.mark.slow
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
    gone_after(15, *workers)
