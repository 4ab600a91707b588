"""What a worker does around the engine's loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train.torch
import torch
from ray.train import PreemptionInfo

from raymi.collectives import Collectives
from raymi.engine.run_folder import RunFolder
from raymi.orchestration.worker import RayContext, _put_earlier_errors_aside


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


def test_a_checkpoint_is_asked_for_once_for_each_node_that_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("raymi.orchestration.worker.ProcessGroup", Collectives)
    monkeypatch.setattr("raymi.orchestration.worker.NOTICE_SECONDS", 0.0)
    notices = Notices([], ["a"], ["a"], ["a", "b"], ["a", "b"])
    monkeypatch.setattr(ray.train, "get_preemption_info", notices)
    context = RayContext(RunFolder(tmp_path), None)
    with pytest.warns(UserWarning, match=r"workers \[0\] may be lost: Ray takes node a"):
        asked = [context.checkpoint_requested() for _ in range(5)]
    assert asked == [False, True, False, True, False]
    monkeypatch.setattr("raymi.orchestration.worker.NOTICE_SECONDS", 1000.0)
    notices.left = [["c"]]
    with pytest.warns(UserWarning, match="Ray takes node c"):
        asked = [context.checkpoint_requested() for _ in range(2)]
    assert asked == [True, False], "not for a while"
