"""What workers leave in a run's folder when they fail, and what a driver makes of it."""

from __future__ import annotations

from raymi.engine.run_folder import RunFolder
from raymi.runs.kept_json import read_kept
from raymi.runs.records import Failure


def remove_traces(folder: RunFolder) -> None:
    """Removes what an earlier start has left: requests to stop, and its errors."""
    for leftover in (folder.stop_file, folder.pause_file, folder.failure, *folder.error_logs()):
        leftover.unlink(missing_ok=True)


def left_failure(folder: RunFolder) -> str | None:
    """Returns the error of a worker that the user can put right; None where there is none."""
    if not folder.failure.is_file():
        return None
    return read_kept(folder.failure, Failure, "see the error logs in its folder").message


def innermost(error: BaseException, folder: RunFolder) -> str:
    """What went wrong in a worker, without Ray's frames around it; the whole is in the run's
    folder."""
    logs = sorted(folder.error_logs(), key=lambda path: path.stat().st_mtime)
    if not logs:  # a worker died without a word
        logs = [folder.path / "error-ray.log"]
        try:
            logs[0].write_text(str(error))
        except OSError as unwritten:
            return f"{error} (cannot write {logs[0]}: {unwritten.strerror})"
    lines = [
        line.strip() for line in logs[0].read_text(errors="replace").splitlines() if line.strip()
    ]
    places = [line for line in lines if line.startswith("File ")]
    where = f" in {places[-1].removeprefix('File ')}" if places else ""
    last = lines[-1] if lines else type(error).__name__
    return f"{last}{where} (whole error: {logs[0]})"
