"""Failures that workers write to a run's folder, and their root cause in one line."""

from __future__ import annotations

import re

from raymi.runs.json_files import read_json
from raymi.runs.json_types import Failure
from raymi.runs.run_folder import RunFolder


def remove_leftovers(folder: RunFolder) -> None:
    """Removes the stop requests and errors of an earlier start."""
    for leftover in (folder.stop_file, folder.pause_file, folder.failure, *folder.error_logs()):
        leftover.unlink(missing_ok=True)


def read_failure(folder: RunFolder) -> str | None:
    """Returns a worker's error that the user can fix; None without one."""
    if not folder.failure.is_file():
        return None
    return read_json(folder.failure, Failure, "see the error logs in its folder").message


def root_cause(error: BaseException, folder: RunFolder) -> str:
    """Returns the cause of a failure without Ray's frames; the run's folder has the whole error."""
    logs = sorted(folder.error_logs(), key=lambda path: path.stat().st_mtime)
    if not logs:  # a worker was killed
        logs = [folder.path / "error-ray.log"]
        try:
            logs[0].write_text(str(error))
        except OSError as unwritten:
            cause = worker_loss_cause(str(error)) or str(error)
            return f"{cause} (cannot write {logs[0]}: {unwritten.strerror})"
    text = logs[0].read_text(errors="replace")
    # After a worker is killed, the errors of the others only say that it is gone.
    cause = worker_loss_cause(str(error)) or worker_loss_cause(text) or _last_error(error, text)
    return f"{cause} (whole error: {logs[0]})"


def worker_loss_cause(text: str) -> str | None:
    """Returns the cause of a worker's loss and its remedy, from one of Ray's messages.

    Returns:
        None for any other message.
    """
    if match := re.search(
        r"(\d+) worker\(s\) were killed due to the node running low on memory", text
    ):
        used = re.search(r"was ([\d.]+GB used / [\d.]+GB limit)", text)
        memory = f", {used[1]}" if used else ""
        return (
            f"Ray killed {match[1]} worker(s), as their node ran low on memory{memory}: "
            f"{LESS_MEMORY}"
        )
    if "Worker unexpectedly exits with a connection error code" in text:
        return (
            "the process of a worker was killed: by the system, if its memory ran out (see dmesg), "
            f"or by a user. To use less memory: {LESS_MEMORY}"
        )
    return None


LESS_MEMORY = (
    "lower optim.batch_size, set scaling.micro_batch, ask for fewer scaling.workers on a node, or "
    "use fewer images (data.limit)"
)
"""Remedy for a run that needs too much memory."""


def _last_error(error: BaseException, text: str) -> str:
    """Returns the last line of a traceback, with the place that it names."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File ")]
    where = f" in {places[-1].removeprefix('File ')}" if places else ""
    return f"{lines[-1] if lines else type(error).__name__}{where}"
