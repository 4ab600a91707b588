"""Runs that MLflow shows as running although their process is gone, as after `kill -9`.

The location of a run, its machine and folder, is a tag. A run is closed if it was written on this
machine, its folder is visible, and the locks of a live process are free.
"""

from __future__ import annotations

import hashlib
import platform
import time
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

from raymi.errors import StorageError, UserError
from raymi.files import file_lock
from raymi.tracking.store import all_pages, end_run

LOCATION = "mlflow.raymi.place"
"""Tag with the machine and the folder of a run; MLflow's UI hides it."""

_LOCK = ".lock"


def run_location(folder: Path) -> str:
    """Returns the machine and the folder of a run or sweep, for its tag."""
    return f"{_machine_name()}:{folder.absolute()}"


def close_stale_runs(client: Any, experiment: str, own: str | None = None) -> list[str]:
    """Sets runs of an experiment to KILLED whose process on this machine is gone.

    Runs of live processes, of other machines, of folders that are not visible, and of other
    programs stay as they are. The end of a run is the time of the newest file in its folder.

    Args:
        client: of the store.
        experiment: its id.
        own: id of a run of this process, which stays as it is.

    Returns:
        The ids of these runs.
    """
    prefix = f"{_machine_name()}:"
    closed = []
    for run in list(all_pages(client.search_runs, experiment, "attributes.status = 'RUNNING'")):
        location, run_id = run.data.tags.get(LOCATION, ""), run.info.run_id
        if not location.startswith(prefix) or run_id == own:
            continue
        folder = Path(location.removeprefix(prefix))
        with suppress(OSError, UserError, StorageError), ExitStack() as locks:
            if not _lock(locks, folder):
                continue
            # Its process may have ended the run, or resumed it, since the search.
            if client.get_run(run_id).info.status == "RUNNING":
                end_run(client, run_id, "KILLED", _last_write(folder))
                closed.append(run_id)
    return closed


def _lock(locks: ExitStack, folder: Path) -> bool:
    """Takes the locks of the process of a run, so that none starts meanwhile.

    Returns:
        False without any lock file: the process may live.

    Raises:
        InUse: where a process holds a lock.
    """
    sweep = folder.parent.parent  # if the run is a trial
    folders = [folder, sweep] if (sweep / "sweep.json").is_file() else [folder]
    files = [path / _LOCK for path in folders if (path / _LOCK).is_file()]
    for file in files:
        locks.enter_context(file_lock(file, "its process lives"))
    return bool(files)


def _last_write(folder: Path) -> float:
    """Returns when a file in a folder was last written, in seconds since the epoch."""
    times = [path.stat().st_mtime for path in folder.iterdir() if path.name != _LOCK]
    return min([max(times, default=time.time()), time.time()])


@cache
def _machine_name() -> str:
    """Returns the name of this machine, with a hash that distinguishes machines of one name."""
    name = platform.node() or "unnamed"
    with suppress(OSError):
        number = Path("/etc/machine-id").read_bytes()
        return f"{name}-{hashlib.sha256(number).hexdigest()[:8]}"
    return name
