"""Elastic runs end after failures without progress, not after lost nodes."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from raymi.ray_backend.elastic import FailuresWithoutProgress, SaveBeforeResize
from raymi.runs.checkpoint import save_checkpoint
from raymi.runs.run_folder import RunFolder


def fail(failures: FailuresWithoutProgress) -> None:
    failures.after_worker_group_training_start(None)
    failures.before_controller_execute_failure_decision(None)


def test_failures_count_until_a_new_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    failures = FailuresWithoutProgress(folder, max_failures=2)
    for step in range(5):
        save_checkpoint(folder.checkpoints, step, {}, keep=2)
        fail(failures)
    fail(failures)
    with pytest.raises(RuntimeError, match=r"failed 3 times without a new .*max_failures=2"):
        fail(failures)


def test_waiting_for_slots_is_no_failure(tmp_path: Path) -> None:
    failures = FailuresWithoutProgress(RunFolder(tmp_path), max_failures=1)
    fail(failures)
    for _ in range(5):
        failures.before_controller_execute_failure_decision(None)


class Workers:
    """Worker group that ends after a pause request."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.requested = folder, threading.Event()

    def poll_status(self, timeout: float) -> SimpleNamespace:
        finished = self.requested.is_set()
        if self.folder.pause_file.exists():
            self.requested.set()
        return SimpleNamespace(finished=finished, errors={})


def test_workers_save_before_their_number_changes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    workers, resize = Workers(folder), SaveBeforeResize(folder)
    resize.after_worker_group_training_start(workers)
    resize.before_controller_execute_resize_decision(None)
    assert workers.requested.is_set()
    assert not folder.pause_file.exists(), "it would stop the next workers, too"


def test_a_resize_does_not_wait_for_failed_workers(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    workers, resize = Workers(folder), SaveBeforeResize(folder)
    resize.after_worker_group_training_start(workers)
    resize.before_controller_execute_failure_decision(None)
    start = time.monotonic()
    resize.before_controller_execute_resize_decision(None)
    assert time.monotonic() - start < 5
    assert not workers.requested.is_set()
