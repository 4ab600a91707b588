"""What a worker does around the engine's loop."""

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
from raymi.ray_backend.train_worker import RayContext, _put_earlier_errors_aside
from raymi.runs.run_folder import RunFolder


def test_errors_of_earlier_workers_are_told_once_and_kept_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _put_earlier_errors_aside(folder)
    assert not folder.earlier_errors.exists(), "nothing to tell"
    (tmp_path / "error-rank1.log").write_text("Traceback (…)\nRuntimeError: lost a peer\n\n")
    with pytest.warns(UserWarning, match="ended with RuntimeError: lost a peer"):
        _put_earlier_errors_aside(folder)
    assert not folder.error_logs(), "or a later failure would be explained by it"
    assert "RuntimeError: lost a peer" in folder.earlier_errors.read_text()
    _put_earlier_errors_aside(folder)


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            b"Traceback\n  File x\ntorch.MemoryError: 3 GiB\nsee docs\n",
            "MemoryError: 3",
        ),
        (b"Traceback\nKeyboardInterrupt\n", "KeyboardInterrupt"),
        (b"RuntimeError: \xff\xfe torn", "RuntimeError: "),
    ],
)
def test_the_error_itself_is_told(log: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "error-rank0.log").write_bytes(log)
    (tmp_path / "error-rank1.log").touch()  # killed before it could write
    with pytest.warns(UserWarning, match=f"ended with .*{told}"):
        _put_earlier_errors_aside(RunFolder(tmp_path))
    assert not RunFolder(tmp_path).error_logs()


class Notices:
    """What Ray announces, one answer for each look."""

    def __init__(self, *nodes: list[str]) -> None:
        self.left = list(nodes)

    def __call__(self) -> PreemptionInfo | None:
        nodes = self.left.pop(0)
        return PreemptionInfo(None, {node: [0] for node in nodes}) if nodes else None


class CountedFlags(RankZeroFlags):
    """RankZeroFlags of rank 0, and how often they were asked for."""

    broadcasts = 0

    def broadcast(self, *answers: bool) -> tuple[bool, ...]:
        self.broadcasts += 1
        return super().broadcast(*answers)


class OnlyWorker:
    """Ray's word of where a worker is."""

    def get_node_rank(self) -> int:
        return 0

    def get_local_rank(self) -> int:
        return 0


def worker_that_hears(
    notices: Callable[[], PreemptionInfo | None], seconds: float, patch: pytest.MonkeyPatch
) -> RayContext:
    """The context of a single worker, which looks for notices every so many seconds."""
    patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    patch.setattr(ray.train, "get_preemption_info", notices)
    patch.setattr(ray.train, "get_context", OnlyWorker)
    patch.setattr("raymi.ray_backend.train_worker.ProcessGroup", Collectives)
    patch.setattr("raymi.ray_backend.train_worker.RankZeroFlags", CountedFlags)
    patch.setattr("raymi.ray_backend.train_worker.NOTICE_SECONDS", seconds)
    return RayContext(RunFolder(Path("nowhere")), None)


def checkpoints_asked_for(context: RayContext, steps: int) -> list[bool]:
    """Whether one was, after each step, as the training loop asks."""
    asked = []
    for _ in range(steps):
        assert not context.stop_requested()
        asked.append(context.checkpoint_requested())
    return asked


def test_a_checkpoint_is_asked_for_once_for_each_node_that_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notices = Notices([], ["a"], ["a"], ["a", "b"], ["a", "b"])
    context = worker_that_hears(notices, 0.0, monkeypatch)
    with pytest.warns(UserWarning, match=r"workers \[0\] may be lost: Ray takes node a"):
        asked = checkpoints_asked_for(context, 5)
    assert asked == [False, True, False, True, False]
    monkeypatch.setattr("raymi.ray_backend.train_worker.NOTICE_SECONDS", 1000.0)
    notices.left = [["c"]]
    with pytest.warns(UserWarning, match="Ray takes node c"):
        asked = checkpoints_asked_for(context, 2)
    assert asked == [True, False], "not for a while"


def test_a_step_makes_one_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    context = worker_that_hears(Notices([], []), 0.0, monkeypatch)
    checkpoints_asked_for(context, 2)
    assert context._flags.broadcasts == 2


def test_a_look_that_is_due_during_a_measurement_is_made_after_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = worker_that_hears(Notices(["a"]), 0.0, monkeypatch)
    monkeypatch.setattr("raymi.ray_backend.train_worker.NOTICE_SECONDS", 1000.0)
    for _ in range(3):  # blocks; a look is due at the first of them, and then not for a while
        assert not context.stop_requested()
    with pytest.warns(UserWarning, match="Ray takes node a"):
        assert checkpoints_asked_for(context, 2) == [True, False]


def look_where_rank_zero_does(rank: int, world_size: int) -> list[int]:
    """How often this rank has looked for notices after each step; rank 0 alone finds it time."""
    looks: list[None] = []
    with pytest.MonkeyPatch.context() as patch:
        context = worker_that_hears(lambda: looks.append(None), 1000.0, patch)
        context._next_look = 0.0 if rank == 0 else math.inf
        num_looks = []
        for _ in range(3):
            checkpoints_asked_for(context, 1)
            num_looks.append(len(looks))
    return num_looks


def test_all_workers_look_for_notices_after_the_same_step(tmp_path: Path) -> None:
    looks = run_ranks(look_where_rank_zero_does, 2, tmp_path=tmp_path)
    assert looks == [[1, 1, 1], [1, 1, 1]], "those who look wait for the others"
