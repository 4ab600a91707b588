"""Start of a local Ray, and connection to the cluster of a job: each with a limit and one message.

A local Ray belongs to its driver alone: it has a private folder and token, and listens on the
loopback interface.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from raymi.errors import UserError, first_line
from raymi.ray_backend import head_watch
from raymi.ray_backend.init_thread import NotConnected, RayHost

_ALONE: dict[str, str | None] = {
    # Ray Train has a guard over a run's places, which asks the dashboard. Where there is none, it
    # looks for it for 20 s, and a run that ends before waits for it. At an address that cannot be,
    # it gives up at once. Places that are left over end with the Ray that is started here.
    "RAY_API_SERVER_ADDRESS": "no-dashboard://here",
}
_OWN_DASHBOARD: dict[str, str | None] = {
    "RAY_API_SERVER_ADDRESS": None,  # of a cluster to which the user submits jobs
}
_LOOPBACK = {
    # Named after other systems, on which Ray uses the loopback interface unless this is set. Ray
    # translates `_node_ip_address="127.0.0.1"` into the machine's address on the network.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
}
_LOGGED_ERROR = re.compile(r"\[[^]]*\b[CEF]\b[^]]*\] *(?:\([^)]*\) *)?(?:\S+:\d+: *)?(.*)")
_START_SECONDS = 180.0  # for a local Ray; on a busy machine it takes a minute
_JOIN_SECONDS = 60.0  # after which no more attempts are made
_ATTEMPT_SECONDS = 60.0  # for the last of them
_LEAVE_SECONDS = 20.0  # for the end of Ray
_INTERRUPTED_SECONDS = 3.0  # for that of one that hangs, or has not started yet


@contextmanager
def started(num_cpus: int, *, dashboard: bool, check: Callable[[], None]) -> Iterator[None]:
    """Starts a Ray on this machine, which ends with the context or with this process.

    Args:
        num_cpus: CPUs that it gives to workers.
        dashboard: Whether it has a dashboard.
        check: Called during the wait; an exception ends it.

    Raises:
        UserError: It does not start.
    """
    from raymi.ray_backend.temp_folder import private_folder

    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Ray would write one into the user's home, for all users of the machine to read. It looks
        # for this one once in a process, so it stays.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in _LOOPBACK.items():
        os.environ.setdefault(name, value)
    ray = _imported()
    with private_folder() as folder:

        def connect() -> None:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )

        def failed(reason: str) -> UserError:
            return _not_started(reason, folder)

        with _connected(connect, _START_SECONDS, check, failed, dashboard=dashboard):
            yield


@contextmanager
def joined(check: Callable[[], None]) -> Iterator[None]:
    """Connects to the job's cluster, and leaves it at the end.

    Raises:
        UserError: It does not answer.
    """
    _imported()
    with _connected(_join, _JOIN_SECONDS + _ATTEMPT_SECONDS, check, _no_answer):
        yield


@contextmanager
def _connected(
    connect: Callable[[], None],
    seconds: float,
    check: Callable[[], None],
    failed: Callable[[str], UserError],
    dashboard: bool | None = None,
) -> Iterator[None]:
    """Holds a connection; its loss is noticed.

    Args:
        connect: Makes it.
        seconds: Limit of the wait.
        check: Called during the wait; an exception ends it.
        failed: Makes the error from a reason.
        dashboard: Whether a Ray that is started has a dashboard; None: none is started.
    """
    host = RayHost(connect)
    settings: dict[str, str | None] = {}
    if dashboard is not None:
        settings = _OWN_DASHBOARD if dashboard else _ALONE
    lost = False
    try:
        try:
            with _environment(settings):  # of the processes that are started, and their children
                host.start(seconds, check)
        except NotConnected as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise failed(first_line(error.__cause__ or error)) from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        with head_watch.watching():
            try:
                yield
            finally:
                lost = head_watch.is_lost()
    finally:
        host.end(_LEAVE_SECONDS if host.answered and not lost else _INTERRUPTED_SECONDS)


def _join() -> None:
    """Connects to the job's cluster: on a busy node that may take more time than Ray waits for.

    Raises:
        UserError: It does not answer.
    """
    import ray

    deadline = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                reason, *_ = first_line(error.__cause__ or error).split(". ")  # then a traceback
                raise _no_answer(reason) from None


def _no_answer(reason: str) -> UserError:
    return UserError(
        f"the Ray cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']} does not answer "
        f"({reason}): see whether it is up (ray status), "
        "export RAY_AUTH_MODE=token if it wants a token, or unset RAY_ADDRESS to use "
        "this machine"
    )


def _not_started(reason: str, folder: Path) -> UserError:
    """Makes the error of a local Ray that does not start, with the first error in its logs."""
    why = _first_logged_error(folder) or reason
    return UserError(
        f"Ray does not start on this machine ({why}): give the command again when the machine is "
        f"less busy and has free memory, /dev/shm and space in {folder.parent.parent} (or in "
        "RAY_TMPDIR=FOLDER), or train without Ray: python -m raymi.standalone"
    )


def _first_logged_error(folder: Path) -> str:
    """Returns the first error in the logs of Ray's processes, or nothing."""
    for name in ("gcs_server", "raylet"):
        for log in sorted(folder.glob(f"session_2*/logs/{name}.*")):
            for line in log.read_text(errors="replace").splitlines():
                if match := _LOGGED_ERROR.match(line):
                    return f"{name}: {match[1].rpartition('Check failed: ')[2][:200]}"
    return ""


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Sets environment variables, or removes those that are None, and restores the user's own."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _imported() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
    return ray
