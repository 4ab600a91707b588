"""What runs in each Ray Train worker: the engine's loop, seen through Ray's context."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

import raymi
from raymi.collectives import Collectives, ProcessGroup
from raymi.config import Config
from raymi.engine.context import RankZeroFlags, StopRequest
from raymi.engine.loop import train
from raymi.errors import StorageError, UserError
from raymi.files import write_atomically
from raymi.runs.run_folder import RunFolder

WAIT_SECONDS = 180.0
"""How long rank 0 waits for one of an earlier start to be gone: a driver that died takes its
workers along within seconds; of a node that died, NFS keeps the lock for 90 seconds."""

NOTICE_SECONDS = 2.0
"""Between two looks for notices of Ray's: all workers take part in each."""

_PACKAGE = Path(raymi.__file__).parent


class RayContext:
    """The engine's context inside a Ray Train worker."""

    def __init__(
        self, folder: RunFolder, deadline: float | None, stop_file: Path | None = None
    ) -> None:
        self.device: torch.device = ray.train.torch.get_device()
        self.group: Collectives = ProcessGroup()
        place = ray.train.get_context()
        self.node, self.first_on_node = place.get_node_rank(), place.get_local_rank() == 0
        self._stop = StopRequest(folder.stop_file, folder.pause_file, stop_file, deadline=deadline)
        self._flags = RankZeroFlags()
        self._next_look = time.monotonic() + NOTICE_SECONDS
        self._look = False  # for notices, after the step; the same on every worker
        self._leaving: set[str] = set()

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Ray Train's report: a barrier of all workers."""
        ray.train.report(dict(metrics))

    def stop_requested(self) -> bool:
        """Also agrees on whether to look for notices after the step: one broadcast a step."""
        due = time.monotonic() >= self._next_look
        stop, look = self._flags.broadcast(self._stop.is_requested(), due)
        if look:  # until it is done: during measurements, this is asked without a step to follow
            self._look = True
            self._next_look = time.monotonic() + NOTICE_SECONDS
        return stop

    def checkpoint_requested(self) -> bool:
        """Once for each node of this run that the cloud has announced to take away."""
        if not self._look:
            return False
        self._look = False
        notice = ray.train.get_preemption_info()
        if notice is None or self._leaving.issuperset(notice.preempted_node_ids):
            return False
        self._leaving.update(notice.preempted_node_ids)
        warnings.warn(f"{_said(notice)}: a checkpoint is written", stacklevel=1)
        return True

    def agree(self, answer: bool) -> bool:
        (agreed,) = self._flags.broadcast(answer)
        return agreed


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the training loop; what the user can put right is left in the run's folder for the
    driver.

    Args: job, with `config` (JSON), `folder`, `import_path` (of the user's own modules), `deadline`
        (seconds since the epoch, or None), `stop_file` (further to the run's own, or None), `test`
        (whether the test set is looked at in the end) and `until` (the phase with which it ends).
    Returns: how the run ended; also where the storage fails, which Ray is not to try again: the
        `problem` is the same for all workers.
    """
    config = Config.model_validate_json(job["config"])
    folder = RunFolder(Path(job["folder"]))
    if job["import_path"] not in sys.path:
        sys.path.insert(0, job["import_path"])  # the user's own models
    torch.set_num_threads(config.scaling.cpus_per_worker)
    stop_file = None if job["stop_file"] is None else Path(job["stop_file"])
    context = RayContext(folder, job["deadline"], stop_file)
    warnings.showwarning = _warn_into(folder, context.group.rank)
    rank = context.group.rank
    try:
        if not folder.config.is_file():
            raise UserError(
                f"this worker's node does not see {folder.path}: set out=FOLDER to storage that "
                "all nodes share"
            )
        with folder.lock(".writer.lock", WAIT_SECONDS) if rank == 0 else nullcontext():
            if rank == 0:
                folder.pause_file.unlink(missing_ok=True)  # whoever was to hear it is gone
                with suppress(OSError):  # a convenience: the run does not depend on it
                    _put_earlier_errors_aside(folder)
            context.agree(True)  # nobody reads before an earlier writer is gone
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


def _said(notice: ray.train.PreemptionInfo) -> str:
    """A notice of preemption in words."""
    nodes = ", ".join(node[:8] for node in notice.preempted_node_ids)
    text = f"workers {notice.preempted_ranks} may be lost: Ray takes node {nodes} away"
    if notice.deadline_ms:
        text += f" in {max(0.0, notice.deadline_ms / 1000 - time.time()):.0f} s"
    return text


def _put_earlier_errors_aside(folder: RunFolder) -> None:
    """Warns of why an earlier group of workers ended: their errors are not those of this one."""
    logs = folder.error_logs()
    errors = [text for log in logs if (text := log.read_text(errors="replace").strip())]
    if errors:
        with folder.earlier_errors.open("a") as kept:
            kept.writelines(f"{text}\n" for text in errors)
        # A traceback's own lines are indented, the error is not.
        told = [line for line in errors[0].splitlines() if re.match(r"[\w.]+(:|$)", line)]
        last = (told or errors[0].splitlines())[-1]
        warnings.warn(
            f"the workers before these ended with {last} (whole error: {folder.earlier_errors})",
            stacklevel=1,
        )
    for log in logs:
        log.unlink(missing_ok=True)


def _warn_into(folder: RunFolder, rank: int) -> Any:
    """Warnings of a worker go to a file of the run; the driver shows them."""

    def show(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
        if rank == 0 and Path(filename).is_relative_to(_PACKAGE):
            with suppress(OSError), folder.warnings.open("a") as log:
                log.write(f"{message}\n")

    return show
