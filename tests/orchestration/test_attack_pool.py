"""Workers of an evaluation may be one or many, slow, killed or never there: the numbers are the
same; what cannot be done ends in one clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from raymi_command import environment, wait_for

from raymi.attacks.catalogue import Threat
from raymi.attacks.suites import ensembles_of
from raymi.config import ScalingConfig
from raymi.data import ImageSet
from raymi.errors import UserError
from raymi.evaluation.blocks import CLEAN, Outcome, Schedule, Step
from raymi.evaluation.ledger import Ledger
from raymi.evaluation.run import InThisProcess, Pool, run
from raymi.evaluation.steps import StepFailed, Task
from raymi.evaluation.work import Attackers, Work
from raymi.orchestration.ray_session import ray_session

MINE = '''
import os
import time
from pathlib import Path
import torch
from torch import nn

class Plain:
    """A small network, the same each time."""
    def load(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))

class With(Plain):
    """The same network, with something before each forward."""
    def __init__(self, first):
        self.first = first
    def load(self):
        return nn.Sequential(self.first, super().load())

class WaitsFor(nn.Module):
    """Says who it is, and waits for a file."""
    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)
    def forward(self, x):
        while not (self.folder / "go").exists():
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(0.02)
        return x

class Ends(nn.Module):
    def forward(self, x):
        os._exit(3)

class Fails(nn.Module):
    def __init__(self, message):
        super().__init__()
        self.message = message
    def forward(self, x):
        raise RuntimeError(self.message)

class CannotBeLoaded:
    def load(self):
        return torch.load("/nowhere.pt")

class Pickled:
    """Cannot be unpickled where it is sent to."""
    def __reduce__(self):
        return _unpickled, ()

def _unpickled():
    raise ImportError("not on this node")

class EndsItsWorker:
    def __reduce__(self):
        return os._exit, (4,)
'''
THREAT, NAMES, SIZE = Threat("linf", 0.1), ("pgd-3", "autoattack-rand"), 10
ENSEMBLES = ensembles_of(NAMES, THREAT, 5)
SCHEDULE = Schedule(35, SIZE, ENSEMBLES)
FIRST = Task("net", Step(CLEAN, 0, CLEAN, 0), torch.arange(SIZE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the user's own module is."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "pool_mine.py").write_text(MINE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def mine(folder: Path) -> Any:
    import pool_mine

    return pool_mine


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


def work(**subjects: Any) -> Work:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (35, 3, 12, 12), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(35) % 5, tuple("abcde"))
    return Work(subjects, images, dict.fromkeys(subjects, ENSEMBLES), THREAT, seed=3)


Found = Mapping[Step, tuple[Outcome, torch.Tensor | None]]


def evaluate(pool: Pool, folder: Path) -> Found:
    """All outcomes, and the adversarial samples of one attack."""
    ledger = Ledger(folder / "ledger", {})
    steps = run(SCHEDULE, ledger, pool, "net", keep=lambda step: step.attack == "pgd-3")
    return {
        step: (outcome, ledger.adversarial(step) if step.attack == "pgd-3" else None)
        for step, outcome, _ in steps
    }


@pytest.fixture(scope="module")
def expected(mine: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        attackers = Attackers(work(net=mine.Plain()))
        return evaluate(InThisProcess(attackers), tmp_path_factory.mktemp("expected"))
    finally:
        torch.set_num_threads(threads)


def expect_equal(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    for step, (outcome, kept) in expected.items():
        other, other_kept = found[step]
        for name in ("samples", "labels", "predictions", "broken", "usable", "linf", "l2"):
            assert torch.equal(getattr(outcome, name), getattr(other, name)), (step, name)
        if step.attack == "pgd-3":
            for tensor, same in zip(kept, other_kept, strict=True):
                assert torch.equal(tensor, same), step


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_finds_the_same_bits(
    workers: int, start: Any, mine: Any, expected: Found, tmp_path: Path
) -> None:
    """For the third one there is no place."""
    assert len(expected) == SCHEDULE.total
    assert any(outcome.broken.any() for outcome, _ in expected.values())
    expect_equal(evaluate(start(work(net=mine.Plain()), workers=workers), tmp_path), expected)


def test_a_killed_worker_costs_time_and_nothing_else(
    start: Any, mine: Any, expected: Found, tmp_path: Path
) -> None:
    told: list[str] = []
    pool = start(work(net=mine.With(mine.WaitsFor(tmp_path))), tell=told.append)
    victims: list[int] = []

    def kill_one() -> None:
        victims.append(waiting(tmp_path))
        os.kill(victims[0], signal.SIGKILL)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_one)
    killer.start()
    expect_equal(evaluate(pool, tmp_path), expected)
    killer.join()
    assert not psutil.pid_exists(victims[0])
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
        assert time.monotonic() - heard[0] < 1
    gone_after(5, waiting(tmp_path))


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
import test_attack_pool as test
from raymi.config import ScalingConfig
from raymi.orchestration.ray_session import ray_session

folder = sys.argv[1]
sys.path.insert(0, folder)
import pool_mine as mine
scaling = ScalingConfig(workers=2, use_gpu="false")
with ray_session(scaling):
    from raymi.orchestration.attack_pool import AttackPool

    subjects = {f"net{block}": mine.With(mine.WaitsFor(f"{folder}/{block}")) for block in range(2)}
    with AttackPool(test.work(**subjects), scaling, use_gpu=False, import_path=folder) as pool:
        for name in subjects:
            pool.submit(test.FIRST._replace(subject=name))
        pool.next()
"""


def test_a_killed_driver_leaves_no_workers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pool_mine.py").write_text(MINE)
    (tmp_path / "driver.py").write_text(DRIVER)
    for block in range(2):
        (tmp_path / str(block)).mkdir()
    paths = os.pathsep.join(path for path in sys.path if path)
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", tmp_path],
        env=environment(PYTHONPATH=paths),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: all((tmp_path / f"{block}/pid").exists() for block in (0, 1)), driver)
        family = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in family if "AttackWorker" in " ".join(child.cmdline())]
        assert {child.pid for child in workers} == {waiting(tmp_path / str(b)) for b in (0, 1)}
    finally:
        driver.kill()
        driver.communicate()
    gone_after(15, *(child.pid for child in family))


def waiting(folder: Path) -> int:
    """Process in which the network of a folder waits."""
    deadline = time.monotonic() + 60
    while not (text := (folder / "pid").read_text() if (folder / "pid").exists() else ""):
        assert time.monotonic() < deadline, "no worker came"
        time.sleep(0.02)
    return int(text)


def gone_after(seconds: float, *pids: int) -> None:
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)
