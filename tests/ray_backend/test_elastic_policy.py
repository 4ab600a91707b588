"""Elastic runs are ended by failures at the same place, not by nodes that come and go."""

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


def test_failures_count_as_long_as_there_is_no_new_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    failures = FailuresWithoutProgress(folder, most=2)
    for step in range(5):
        save_checkpoint(folder.checkpoints, step, {}, keep=2)
        fail(failures)
    fail(failures)
    with pytest.raises(RuntimeError, match=r"failed 3 times without a new .*max_failures=2"):
        fail(failures)


def test_waiting_for_places_is_no_failure(tmp_path: Path) -> None:
    failures = FailuresWithoutProgress(RunFolder(tmp_path), most=1)
    fail(failures)
    for _ in range(5):
        failures.before_controller_execute_failure_decision(None)


class Workers:
    """A worker group that ends once it is asked to pause."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.asked = folder, threading.Event()

    def poll_status(self, timeout: float) -> SimpleNamespace:
        finished = self.asked.is_set()
        if self.folder.pause_file.exists():
            self.asked.set()
        return SimpleNamespace(finished=finished, errors={})


def test_workers_are_asked_to_save_before_their_number_changes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    workers, resize = Workers(folder), SaveBeforeResize(folder)
    resize.after_worker_group_training_start(workers)
    resize.before_controller_execute_resize_decision(None)
    assert workers.asked.is_set()
    assert not folder.pause_file.exists(), "or those that come would stop, too"


def test_workers_that_failed_are_not_waited_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    workers, resize = Workers(folder), SaveBeforeResize(folder)
    resize.after_worker_group_training_start(workers)
    resize.before_controller_execute_failure_decision(None)
    began = time.monotonic()
    resize.before_controller_execute_resize_decision(None)
    assert time.monotonic() - began < 5
    assert not workers.asked.is_set()
