"""Ray Train worker: runs the engine's loop with Ray's context."""

from __future__ import annotations

import json
import re
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import ray.train
import ray.train.torch
import torch

from raymi.collectives import Collectives, ProcessGroup
from raymi.config import Config
from raymi.engine.context import RankZeroFlags, StopReason, StopRequest
from raymi.engine.loop import train
from raymi.errors import StorageError, UserError
from raymi.files import write_atomically
from raymi.given import register
from raymi.ray_backend.worker_process import add_import_path, forward_warnings
from raymi.runs.run_folder import RunFolder

WAIT_SECONDS = 180.0
"""Seconds that rank 0 waits for the rank 0 of an earlier start to end.

The workers of a killed driver end within seconds; NFS keeps the lock of a lost node for 90 s.
"""

NOTICE_SECONDS = 2.0
"""Seconds between two checks for preemption notices, in which all workers take part."""


class RayContext:
    """Context of the engine inside a Ray Train worker."""

    def __init__(
        self, folder: RunFolder, deadline: float | None, stop_file: Path | None = None
    ) -> None:
        self.device: torch.device = ray.train.torch.get_device()
        self.group: Collectives = ProcessGroup()
        context = ray.train.get_context()
        self.node, self.first_on_node = context.get_node_rank(), context.get_local_rank() == 0
        self._stop = StopRequest(folder.stop_file, folder.pause_file, stop_file, deadline=deadline)
        self._flags = RankZeroFlags()
        self._next_check = time.monotonic() + NOTICE_SECONDS
        self._check_due = False  # for notices, after the step; equal on every worker
        self._leaving: set[str] = set()

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Reports metrics to Ray Train, a barrier of all workers."""
        ray.train.report(dict(metrics))

    def stop_requested(self) -> StopReason | None:
        """Returns why to stop, or None; its broadcast also agrees on the next check for notices."""
        due = time.monotonic() >= self._next_check
        reason, check = self._flags.broadcast(self._stop.reason() or 0, due)
        if check:  # stays due until the next step: a validation calls this without a step
            self._check_due = True
            self._next_check = time.monotonic() + NOTICE_SECONDS
        return StopReason(reason) if reason else None

    def checkpoint_requested(self) -> bool:
        """Returns True once for each node of this run with a preemption notice."""
        if not self._check_due:
            return False
        self._check_due = False
        notice = ray.train.get_preemption_info()
        if notice is None or self._leaving.issuperset(notice.preempted_node_ids):
            return False
        self._leaving.update(notice.preempted_node_ids)
        warnings.warn(f"{_notice_text(notice)}: writing a checkpoint", stacklevel=1)
        return True

    def agree(self, answer: bool) -> bool:
        """Returns rank 0's answer; see `Context`."""
        (agreed,) = self._flags.broadcast(answer)
        return bool(agreed)


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the training loop; writes an error that the user can fix to the run's folder.

    Args:
        job: The arguments of `fit` as plain values, with `config` as JSON.

    Returns:
        `finished` and `epoch`; after a storage error `problem`, as Ray must not retry it.
    """
    config = Config.model_validate_json(job["config"])
    folder = RunFolder(Path(job["folder"]))
    add_import_path(job["import_path"])
    register(cloudpickle.loads(job["objects"]))
    torch.set_num_threads(config.scaling.cpus_per_worker)
    stop_file = None if job["stop_file"] is None else Path(job["stop_file"])
    context = RayContext(folder, job["deadline"], stop_file)
    rank = context.group.rank
    forward_warnings(lambda message: _log_warning(folder, message) if rank == 0 else None)
    try:
        if not folder.config.is_file():
            raise UserError(
                f"this worker's node does not see {folder.path}: set out=FOLDER to storage that "
                "all nodes share"
            )
        with folder.lock(".writer.lock", WAIT_SECONDS) if rank == 0 else nullcontext():
            if rank == 0:
                folder.pause_file.unlink(missing_ok=True)  # meant for earlier workers
                with suppress(OSError):  # the run does not depend on it
                    _move_earlier_errors(folder)
            context.agree(True)  # reads start after the earlier writer has ended
            outcome = train(config, context, folder, test=job["test"], until=job["until"])
    except StorageError as error:
        return {"finished": False, "problem": str(error)}
    except (UserError, FloatingPointError) as error:
        with suppress(OSError):
            write_atomically(folder.failure, json.dumps({"message": str(error)}).encode())
        raise
    except Exception:
        with suppress(OSError), (folder.path / f"error-rank{rank}.log").open("a") as log:
            traceback.print_exc(file=log)
        raise
    return {"finished": outcome.finished, "epoch": outcome.epoch}


def _notice_text(notice: ray.train.PreemptionInfo) -> str:
    """Returns the text of a preemption notice."""
    nodes = ", ".join(node[:8] for node in notice.preempted_node_ids)
    text = f"workers {notice.preempted_ranks} may be lost: node {nodes} will be preempted"
    if notice.deadline_ms:
        text += f" in {max(0.0, notice.deadline_ms / 1000 - time.time()):.0f} s"
    return text


def _move_earlier_errors(folder: RunFolder) -> None:
    """Moves the errors of earlier workers to a file of their own, and warns about them."""
    logs = folder.error_logs()
    errors = [text for log in logs if (text := log.read_text(errors="replace").strip())]
    if errors:
        with folder.earlier_errors.open("a") as file:
            file.writelines(f"{text}\n" for text in errors)
        # The lines of a traceback are indented, the error is not.
        unindented = [line for line in errors[0].splitlines() if re.match(r"[\w.]+(:|$)", line)]
        last = (unindented or errors[0].splitlines())[-1]
        warnings.warn(
            f"the previous workers ended with {last} (whole error: {folder.earlier_errors})",
            stacklevel=1,
        )
    for log in logs:
        log.unlink(missing_ok=True)


def _log_warning(folder: RunFolder, message: str) -> None:
    """Appends a warning to a file of the run, which the driver prints."""
    with suppress(OSError), folder.warnings.open("a") as log:
        log.write(f"{message}\n")
