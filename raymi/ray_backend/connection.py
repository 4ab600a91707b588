"""Start of a local Ray, and connection to the cluster of a job, each with a time limit.

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
from raymi.ray_backend.init_thread import NotConnected, RayConnection

_NO_DASHBOARD: dict[str, str | None] = {
    # Ray Train's guard of a run's slots searches for the dashboard for 20 s, and a shorter run
    # waits for it. With an invalid address it gives up immediately; leftover slots end with the
    # local Ray.
    "RAY_API_SERVER_ADDRESS": "no-dashboard://here",
}
_DASHBOARD: dict[str, str | None] = {
    "RAY_API_SERVER_ADDRESS": None,  # the user's, of a cluster for jobs
}
_LOOPBACK = {
    # Makes Ray use the loopback interface, also on Linux. `_node_ip_address="127.0.0.1"` does not:
    # Ray translates it into the machine's network address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
}
_LOGGED_ERROR = re.compile(r"\[[^]]*\b[CEF]\b[^]]*\] *(?:\([^)]*\) *)?(?:\S+:\d+: *)?(.*)")
_START_SECONDS = 180.0  # for a local Ray; on a busy machine it takes a minute
_JOIN_SECONDS = 60.0  # for new attempts
_ATTEMPT_SECONDS = 60.0  # for the last attempt
_SHUTDOWN_SECONDS = 20.0
_INTERRUPTED_SECONDS = 3.0  # for the shutdown of a Ray that hangs, or has not started


@contextmanager
def start_local_ray(num_cpus: int, *, dashboard: bool, check: Callable[[], None]) -> Iterator[None]:
    """Starts a local Ray that ends with the context or with this process.

    Args:
        num_cpus: CPUs for workers.
        dashboard: Whether it has a dashboard.
        check: Called during the wait; an exception ends it.

    Raises:
        UserError: Ray does not start.
    """
    from raymi.ray_backend.temp_folder import private_folder

    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # Ray would write a token to the user's home, readable for all users of the machine. It
        # reads the variable once per process, so the variable stays set.
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
def join_cluster(check: Callable[[], None]) -> Iterator[None]:
    """Connects to the job's cluster, and disconnects at the end.

    Raises:
        UserError: The cluster does not answer.
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
    """Keeps a connection open, and watches the head.

    Args:
        connect: Connects this process.
        seconds: Time limit.
        check: Called during the wait; an exception ends it.
        failed: Builds the error from a reason.
        dashboard: Whether the local Ray has a dashboard; None: no Ray is started.
    """
    ray_connection = RayConnection(connect)
    settings: dict[str, str | None] = {}
    if dashboard is not None:
        settings = _DASHBOARD if dashboard else _NO_DASHBOARD
    lost = False
    try:
        try:
            with _environment(settings):  # for the started processes
                ray_connection.start(seconds, check)
        except NotConnected as error:
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise failed(first_line(error.__cause__ or error)) from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        with head_watch.watch():
            try:
                yield
            finally:
                lost = head_watch.head_lost()
    finally:
        ray_connection.end(
            _SHUTDOWN_SECONDS if ray_connection.answered and not lost else _INTERRUPTED_SECONDS
        )


def _join() -> None:
    """Connects to the job's cluster; retries, as a busy node can exceed Ray's own limit.

    Raises:
        UserError: The cluster does not answer.
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
        f"({reason}): check it with `ray status`, "
        "export RAY_AUTH_MODE=token if it needs a token, or unset RAY_ADDRESS to use "
        "this machine"
    )


def _not_started(reason: str, folder: Path) -> UserError:
    """Builds the error of a local Ray that does not start, with the first error in its logs."""
    why = _first_logged_error(folder) or reason
    return UserError(
        f"Ray does not start on this machine ({why}): run the command again when the machine is "
        f"less busy and has free memory, /dev/shm and space in {folder.parent.parent} (or in "
        "RAY_TMPDIR=FOLDER), or train without Ray: python -m raymi.standalone"
    )


def _first_logged_error(folder: Path) -> str:
    """Returns the first error in the logs of Ray's processes, or an empty string."""
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
