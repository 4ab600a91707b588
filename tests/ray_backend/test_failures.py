"""Root causes of failures, from Ray's messages and the error logs of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError

from raymi.ray_backend.failures import root_cause, worker_loss_cause
from raymi.runs.run_folder import RunFolder

OUT_OF_MEMORY = """Training failed due to worker errors:
[Rank 0,1 Error Snippet]:
A worker health check failed.
Worker 1: 2 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 10.0.0.2, ID: 4f2a) was 15.32GB used / 16.00GB limit (0.957500)
OOM kill reason: Memory usage 16449725235B exceeded threshold of 16320875724B (95.0%)
Ray killed 2 worker(s) based on the killing policy
Refer to the documentation on how to address the out of memory issue: \
https://docs.ray.io/en/latest/ray-observability/user-guides/debug-apps/debug-memory.html. \
Consider provisioning more memory on this node or reducing task parallelism by requesting more \
CPUs per task. To adjust the kill threshold, set the environment variable \
`RAY_memory_usage_threshold` when starting Ray. If the idle workers have a non-trivial memory \
footprint at the time of OOM (check OOM log for non-selected idle workers), consider setting the \
environment variable `RAY_idle_worker_killing_memory_threshold_bytes` to a lower value."""
"""Message of ray 2.60, shortened in the middle."""

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: RayTrainWorker
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes \
include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop \
--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another error."""


def test_an_out_of_memory_kill_names_the_cause_and_the_settings_to_lower(tmp_path: Path) -> None:
    message = root_cause(OutOfMemoryError(OUT_OF_MEMORY), RunFolder(tmp_path))
    assert message.startswith(
        "Ray killed 2 worker(s), as their node ran low on memory, 15.32GB used / 16.00GB limit: "
        "lower optim.batch_size"
    )
    assert "scaling.workers" in message
    assert "idle_worker" not in message
    assert OUT_OF_MEMORY in (tmp_path / "error-ray.log").read_text()


def test_errors_of_surviving_workers_do_not_hide_an_out_of_memory_kill(
    tmp_path: Path,
) -> None:
    (tmp_path / "error-rank1.log").write_text("RuntimeError: connection closed by peer\n")
    message = root_cause(RuntimeError(OUT_OF_MEMORY), RunFolder(tmp_path))
    assert message.startswith("Ray killed 2 worker(s)")


def test_a_killed_process_is_reported_as_killed(tmp_path: Path) -> None:
    message = root_cause(RuntimeError(KILLED), RunFolder(tmp_path))
    assert message.startswith("the process of a worker was killed")
    assert "dmesg" in message


@pytest.mark.parametrize("text", ["", "IndexError: my own bug", "the node is low on memory, maybe"])
def test_other_errors_are_not_a_lost_worker(text: str) -> None:
    assert worker_loss_cause(text) is None


def test_a_workers_error_is_reported_with_its_location(tmp_path: Path) -> None:
    (tmp_path / "error-rank0.log").write_text(
        'Traceback (most recent call last):\n  File "net.py", line 8, in forward\n'
        "    raise IndexError\nIndexError: my own bug\n"
    )
    message = root_cause(RuntimeError("Training failed"), RunFolder(tmp_path))
    assert message.startswith('IndexError: my own bug in "net.py", line 8, in forward')
