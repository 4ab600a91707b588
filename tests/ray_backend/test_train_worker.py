"""Train worker: earlier errors, preemption notices."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train.torch
import torch
from gloo import run_ranks
from ray.train import PreemptionInfo

from raymi.collectives import Collectives
from raymi.engine.context import RankZeroFlags
from raymi.ray_backend.train_worker import RayContext, _move_earlier_errors
from raymi.runs.run_folder import RunFolder


def test_errors_of_earlier_workers_are_reported_once_and_moved(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _move_earlier_errors(folder)
    assert not folder.earlier_errors.exists(), "nothing to report"
    (tmp_path / "error-rank1.log").write_text("Traceback (…)\nRuntimeError: lost a peer\n\n")
    with pytest.warns(UserWarning, match="ended with RuntimeError: lost a peer"):
        _move_earlier_errors(folder)
    assert not folder.error_logs(), "or a later failure would report it"
    assert "RuntimeError: lost a peer" in folder.earlier_errors.read_text()
    _move_earlier_errors(folder)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            b"Traceback\n  File x\ntorch.MemoryError: 3 GiB\nsee docs\n",
            "MemoryError: 3",
        ),
        (b"Traceback\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        (b"RuntimeError: \xff\xfe torn", "RuntimeError: "),
    ],
)
def test_the_error_itself_is_reported(log: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "error-rank0.log").write_bytes(log)
    (tmp_path / "error-rank1.log").touch()  # killed before it could write
    with pytest.warns(UserWarning, match=f"ended with .*{message}"):
        _move_earlier_errors(RunFolder(tmp_path))
    assert not RunFolder(tmp_path).error_logs()


class Notices:
    """Preemption notices of Ray, one for each check."""

    def __init__(self, *nodes: list[str]) -> None:
        self.left = list(nodes)

    def __call__(self) -> PreemptionInfo | None:
        nodes = self.left.pop(0)
        return PreemptionInfo(None, {node: [0] for node in nodes}) if nodes else None


class CountedFlags(RankZeroFlags):
    """Counts the broadcasts of rank 0's flags."""

    broadcasts = 0

    def broadcast(self, *answers: bool) -> tuple[bool, ...]:
        self.broadcasts += 1
        return super().broadcast(*answers)


class OnlyWorker:
    """Context of Ray Train for a single worker."""

    def get_node_rank(self) -> int:
        return 0

    def get_local_rank(self) -> int:
        return 0


def worker_with_notices(
    notices: Callable[[], PreemptionInfo | None], seconds: float, patch: pytest.MonkeyPatch
) -> RayContext:
    """Builds the context of a single worker that checks for notices every `seconds`."""
    patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    patch.setattr(ray.train, "get_preemption_info", notices)
    patch.setattr(ray.train, "get_context", OnlyWorker)
    patch.setattr("raymi.ray_backend.train_worker.ProcessGroup", Collectives)
    patch.setattr("raymi.ray_backend.train_worker.RankZeroFlags", CountedFlags)
    patch.setattr("raymi.ray_backend.train_worker.NOTICE_SECONDS", seconds)
    return RayContext(RunFolder(Path("nowhere")), None)


def checkpoint_requests(context: RayContext, steps: int) -> list[bool]:
    """Runs steps of the training loop; returns whether each one requested a checkpoint."""
    requests = []
    for _ in range(steps):
        assert not context.stop_requested()
        requests.append(context.checkpoint_requested())
    return requests


def test_each_preempted_node_requests_one_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notices = Notices([], ["a"], ["a"], ["a", "b"], ["a", "b"])
    context = worker_with_notices(notices, 0.0, monkeypatch)
    with pytest.warns(UserWarning, match=r"workers \[0\] may be lost: node a will be"):
        requests = checkpoint_requests(context, 5)
    assert requests == [False, True, False, True, False]
    monkeypatch.setattr("raymi.ray_backend.train_worker.NOTICE_SECONDS", 1000.0)
    notices.left = [["c"]]
    with pytest.warns(UserWarning, match="node c will be"):
        requests = checkpoint_requests(context, 2)
    assert requests == [True, False], "not before the next check"


def test_a_step_makes_one_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    context = worker_with_notices(Notices([], []), 0.0, monkeypatch)
    checkpoint_requests(context, 2)
    assert context._flags.broadcasts == 2


def test_a_check_due_during_a_validation_follows_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = worker_with_notices(Notices(["a"]), 0.0, monkeypatch)
    monkeypatch.setattr("raymi.ray_backend.train_worker.NOTICE_SECONDS", 1000.0)
    for _ in range(3):  # blocks; a check is due at the first one only
        assert not context.stop_requested()
    with pytest.warns(UserWarning, match="node a will be"):
        assert checkpoint_requests(context, 2) == [True, False]


def count_checks(rank: int, world_size: int) -> list[int]:
    """Returns the number of checks after each step; only rank 0's timer is due."""
    checks: list[None] = []
    with pytest.MonkeyPatch.context() as patch:
        context = worker_with_notices(lambda: checks.append(None), 1000.0, patch)
        context._next_check = 0.0 if rank == 0 else math.inf
        counts = []
        for _ in range(3):
            checkpoint_requests(context, 1)
            counts.append(len(checks))
    return counts


def test_all_workers_check_for_notices_after_the_same_step(tmp_path: Path) -> None:
    counts = run_ranks(count_checks, 2, tmp_path=tmp_path)
    assert counts == [[1, 1, 1], [1, 1, 1]], "a check waits for all workers"
