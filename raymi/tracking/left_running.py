"""Runs that MLflow shows as running although their process is gone, as after `kill -9`.

A run is tagged with its machine and folder. It is closed where it was written from this machine,
its folder is visible, and the locks that its process holds while it lives are free.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

from raymi.errors import StorageError, UserError
from raymi.files import file_lock
from raymi.tracking.store import end_run

PLACE = "raymi.place"
"""Tag with the machine and the folder of a run."""

_PAGE_SIZE = 100
_LOCK = ".lock"


def place_of(folder: Path) -> str:
    """Returns the machine and the folder of a run or sweep, for its tag."""
    return f"{_this_machine()}:{folder.absolute()}"


def close_left_running(client: Any, experiment: str, own: str | None = None) -> list[str]:
    """Sets runs of an experiment to KILLED whose process on this machine is gone.

    Runs of live processes, of other machines, of folders that are not visible, and of other
    programs stay as they are. The end of a run is the time of the newest file in its folder.

    Args:
        experiment: its id.
        own: id of a run of this process, which stays as it is.

    Returns:
        The ids of these runs.
    """
    here = f"{_this_machine()}:"
    closed = []
    for run in list(_running(client, experiment)):
        place = run.data.tags.get(PLACE, "")
        if place.startswith(here) and run.info.run_id != own:
            folder = Path(place.removeprefix(here))
            with suppress(OSError, UserError, StorageError), ExitStack() as held:
                if not _lock(held, folder):
                    continue
                # It may have ended, or begun again, since the search.
                if client.get_run(run.info.run_id).info.status == "RUNNING":
                    end_run(client, run.info.run_id, "KILLED", _last_sign(folder))
                    closed.append(run.info.run_id)
    return closed


def _running(client: Any, experiment: str) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment],
            "attributes.status = 'RUNNING'",
            max_results=_PAGE_SIZE,
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _lock(held: ExitStack, folder: Path) -> bool:
    """Takes the locks that the process of a run holds, so that none starts meanwhile.

    Returns:
        False without any lock, from which nothing follows.

    Raises:
        InUse: where a process holds one.
    """
    sweep = folder.parent.parent  # of a trial
    folders = [folder, sweep] if (sweep / "sweep.json").is_file() else [folder]
    locks = [path / _LOCK for path in folders if (path / _LOCK).is_file()]
    for lock in locks:
        held.enter_context(file_lock(lock, "its process lives"))
    return bool(locks)


def _last_sign(folder: Path) -> float:
    """Returns when a file in a folder was last written, in seconds since the epoch."""
    times = [path.stat().st_mtime for path in folder.iterdir() if path.name != _LOCK]
    return min([max(times, default=time.time()), time.time()])


@cache
def _this_machine() -> str:
    """Returns the name of this machine, with digits that distinguish machines of one name."""
    name = platform.node() or "unnamed"
    with suppress(OSError):
        number = Path("/etc/machine-id").read_bytes()
        return f"{name}-{hashlib.sha256(number).hexdigest()[:8]}"
    return name
