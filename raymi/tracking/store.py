"""Access to the MLflow store: the server that the user names, or a local SQLite file."""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymi.errors import UserError
from raymi.tracking.database import complete_database, sqlite_file, sqlite_uri
from raymi.tracking.view import apply_view, experiment_tags

CLIENT_SETTINGS = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # With the address of the run it would print the server's, and the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Retries of the client would block for minutes: raymi retries itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A model must not even name environment variables that may hold secrets.
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
"""Environment variables for the MLflow client; values that the user has set are kept."""

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Default port of each database server that MLflow supports."""

_ANSWER_SECONDS = 15  # for a connection to a database server

LONGEST_TAG = 5000
"""Characters of a tag that every MLflow server accepts."""

PAGE_SIZE = 100
"""Results of a search per request."""

_LOGIN = re.compile(r"(?<=://)[^\s/@]+@")  # of any address in an error, such as a proxy's
_SECRET = re.compile("pass|pwd|secret|token|key|odbc_connect", re.IGNORECASE)


def tracking_uri(home: Path) -> str:
    """Returns $MLFLOW_TRACKING_URI, or the address of a SQLite file `mlflow.db` in `home`."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return named or sqlite_uri(home / "mlflow.db")


def require_store(uri: str, remedy: str) -> None:
    """Checks that the file of a local store exists: MLflow would create it.

    Raises:
        UserError: where it is missing, with the remedy.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(f"there is no MLflow store {file}: {remedy}")


def store_uri(delivered: Mapping[str, Any], home: Path) -> str:
    """Returns the store of a run or sweep: the user's, else the last one, else a local file.

    Args:
        delivered: content of `tracking.json`; empty if it was not tracked yet.
        home: folder of the local file.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or delivered.get("uri") or tracking_uri(home)


def with_login(uri: str) -> str:
    """Returns a saved address, which has no password, with the login in $MLFLOW_TRACKING_URI."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if without_password(named) == without_password(uri) else uri


def without_password(uri: str) -> str:
    """Returns the address of a store without user and password, to be printed or saved."""
    return _redacted(uri, uri)


def error_line(error: Exception, uri: str) -> str:
    """Returns type and first line of an error, without user and password of the store.

    MLflow's errors repeat the address. A UserError keeps all of its text.
    """
    if re.search("[/?#]", _login(uri)):  # the error would show parts of it as a host
        return "user and password must be written as in an address: %2F for /, %3F for ?, %23 for #"
    if isinstance(error, UserError):
        return _LOGIN.sub("", _redacted(" ".join(str(error).split()), uri))
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a")]
    first = (lines or [""])[0]  # without SQLAlchemy's remark
    message = _LOGIN.sub("", _redacted(first, uri))[:200].strip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _redacted(text: str, uri: str) -> str:
    """Returns a text without the secrets in the address of a store."""
    login = _login(uri)
    query = uri.replace(login, "", 1).partition("?")[2].partition("#")[0]
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if value and _SECRET.search(name):
            text = text.replace(pair, f"{name}=...")
    return text.replace(login, "") if login else text


def _login(uri: str) -> str:
    """Returns user and password of an address, up to the @.

    The address may be malformed: a / in the password, or no scheme.
    """
    rest = uri.partition("://")[2] or uri
    if rest.startswith("/"):  # a file
        return ""
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    return "".join(rest.rpartition("@")[:2]) if {":", "@"} & set(host) else ""


def shell_word(uri: str) -> str:
    """Returns the address of a store for a shell command, without a password."""
    if without_password(uri) == uri:
        return shlex.quote(uri)
    return '"$MLFLOW_TRACKING_URI"' if uri == os.environ.get("MLFLOW_TRACKING_URI") else "URI"


def how_to_open(uri: str) -> str:
    """Returns the command that shows the MLflow UI of a store, or the address of its server."""
    uri = without_password(uri)
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def connect(uri: str) -> Any:
    """Returns an `MlflowClient` of a store; creates a missing SQLite file.

    Silences MLflow's log messages: raymi prints its own.

    Raises:
        Exception: see `complete_database`; or a database server does not answer.
    """
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):  # importing mlflow sets their levels
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs a traceback at each attempt and raises the same error.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    complete_database(uri)
    _require_database_server(uri)
    return mlflow.MlflowClient(uri)


def _require_database_server(uri: str) -> None:
    """Fails within seconds where a database server does not answer; MLflow tries for 100 s.

    Does nothing for other addresses.

    Raises:
        OSError: nothing listens at the address.
        Exception: of SQLAlchemy or the driver.
    """
    scheme = re.split("[+:]", uri, maxsplit=1)[0]
    if scheme not in _PORTS:
        return
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if url.host:  # else a socket file
        port = url.port or _PORTS[scheme]
        socket.create_connection((url.host, port), _ANSWER_SECONDS).close()
    limit = {"timeout" if scheme == "mssql" else "connect_timeout": _ANSWER_SECONDS}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=limit)
    engine.connect().close()


@contextmanager
def use_store(uri: str) -> Iterator[None]:
    """Makes a store the current one of MLflow's functions; restores the environment afterwards."""
    import mlflow

    named = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        if named is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = named


def experiment_id(client: Any, name: str, home: Path) -> str:
    """Returns the id of an experiment, which is created if missing.

    A local store keeps its artifacts in `home`/mlruns, independent of the current folder.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        local = client.tracking_uri.startswith("sqlite:")
        location = (home / "mlruns").as_uri() if local else None
        return client.create_experiment(name, artifact_location=location, tags=experiment_tags())
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    apply_view(client, experiment)
    return experiment.experiment_id


def all_pages(search: Callable[..., Any], experiment: str, *condition: str) -> Iterator[Any]:
    """Yields all results of a search of the client.

    Args:
        search: method of the client.
        experiment: id of the experiment.
        condition: filter in MLflow's syntax.
    """
    token: str | None = None
    while True:
        page = search([experiment], *condition, max_results=PAGE_SIZE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def end_run(client: Any, run_id: str, status: str, when: float | None = None) -> None:
    """Sets the status and the end of a run; the end is not before the start if a clock jumps back.

    Args:
        client: of the store.
        run_id: of the run.
        status: FINISHED, KILLED or FAILED.
        when: seconds since the epoch; None: now.
    """
    began = client.get_run(run_id).info.start_time or 0
    ended = int(1000 * (time.time() if when is None else when))
    client.set_terminated(run_id, status, end_time=max(began, ended))


def as_tag(text: str) -> str:
    """Returns a text cut to the longest value of a tag."""
    return text if len(text) <= LONGEST_TAG else f"{text[: LONGEST_TAG - 3]}..."


def has_run(client: Any, run_id: str | None) -> bool:
    """Returns whether MLflow has a run that is not deleted."""
    run = _get(client.get_run, run_id)
    return run is not None and run.info.lifecycle_stage == "active"


def has_model(client: Any, model_id: str | None) -> bool:
    """Returns whether MLflow has a logged model that is not deleted."""
    return _get(client.get_logged_model, model_id) is not None


def _get(find: Callable[[str], Any], key: str | None) -> Any:
    """Returns the entity of an id in MLflow; None: no such entity."""
    from mlflow.exceptions import MlflowException

    try:
        return None if key is None else find(key)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
