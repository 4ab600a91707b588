"""Where MLflow is: the server that the user names, or a SQLite file that needs no set-up."""

from __future__ import annotations

import logging
import os
import re
import shlex
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
    # A server that is away must not hold us for minutes: we ask again ourselves.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Not even the names of variables that may hold secrets belong into a model.
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
"""Environment variables for the MLflow client; values that the user has set are kept."""

LONGEST_TAG = 5000  # that every server of MLflow keeps
_MOST_PARAMS = 100  # that MLflow takes at once
_LOGIN = re.compile(r"(?<=://)[^\s/@]+@")  # of whatever address an error names: a proxy's, too
_SECRET = re.compile("pass|pwd|secret|token|key|odbc_connect", re.IGNORECASE)


def tracking_uri(home: Path) -> str:
    """$MLFLOW_TRACKING_URI, or a SQLite file `mlflow.db` in `home`."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return named or sqlite_uri(home / "mlflow.db")


def missing_file(uri: str) -> Path | None:
    """The file of a local store where it is not there, which MLflow would make; None: it is there,
    or the store is a server."""
    file = sqlite_file(uri)
    return file if file is not None and not file.is_file() else None


def address(kept: Mapping[str, Any], home: Path) -> str:
    """Of the store that something is tracked in: the one that the user names, else the one that it
    is in, else a file in `home`.

    Args: kept, what its folder says of MLflow, with `uri` where it is in one.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or kept.get("uri") or tracking_uri(home)


def with_login(uri: str) -> str:
    """The address of a store that a folder keeps, which is without a password: with the user's own
    where $MLFLOW_TRACKING_URI names the same store."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if without_password(named) == without_password(uri) else uri


def without_password(uri: str) -> str:
    """The address of a store as it may be shown and kept: without user and password."""
    return _hidden(uri, uri)


def in_one_line(error: Exception, uri: str) -> str:
    """Returns an error of a store for the terminal: its type and first line, without user and
    password, which MLflow repeats with the address. A UserError keeps all of its text."""
    if re.search("[/?#]", _login(uri)):  # parts of it are taken for a host, and told as that
        return "user and password must be written as in an address: %2F for /, %3F for ?, %23 for #"
    if isinstance(error, UserError):
        return _LOGIN.sub("", _hidden(" ".join(str(error).split()), uri))
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a")]
    first = (lines or [""])[0]  # SQLAlchemy's remark on its own working left out
    message = _LOGIN.sub("", _hidden(first, uri))[:200].strip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _hidden(text: str, uri: str) -> str:
    """A text without what is secret in the address of a store."""
    login = _login(uri)
    query = uri.replace(login, "", 1).partition("?")[2].partition("#")[0]
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if value and _SECRET.search(name):
            text = text.replace(pair, f"{name}=...")
    return text.replace(login, "") if login else text


def _login(uri: str) -> str:
    """The user and password of an address, up to the @; also of one that is not well formed, as its
    password has a / or its scheme is left out."""
    rest = uri.partition("://")[2] or uri
    if rest.startswith("/"):  # a file
        return ""
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    return "".join(rest.rpartition("@")[:2]) if {":", "@"} & set(host) else ""


def for_command(uri: str) -> str:
    """Returns the address of a store as a word of a shell command, which shows no password."""
    if without_password(uri) == uri:
        return shlex.quote(uri)
    return '"$MLFLOW_TRACKING_URI"' if uri == os.environ.get("MLFLOW_TRACKING_URI") else "URI"


def how_to_open(uri: str) -> str:
    """The command that shows the MLflow UI of a store, or its address."""
    uri = without_password(uri)
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def connect(uri: str) -> Any:
    """Returns an `MlflowClient` of a store; a SQLite file that is missing is created.

    MLflow's messages stay off the terminal: raymi prints its own.

    Raises: as `complete_database` does.
    """
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):  # importing mlflow has set their levels
        logging.getLogger(name).setLevel(logging.ERROR)
    # It logs a traceback at each attempt, and raises the same: that is told once, in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    complete_database(uri)
    return mlflow.MlflowClient(uri)


@contextmanager
def current(uri: str) -> Iterator[None]:
    """Points MLflow's own functions at a store for a while; without a trace in the environment,
    which MLflow would leave."""
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
    """The experiment called `name`, made if it is not there.

    A local store keeps its artifacts in `home`/mlruns, whatever the current folder is.
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


def find_run(client: Any, experiment: str, ours: str) -> Any:
    """The run that has our id, in the experiment of an id; None where there is none."""
    found = client.search_runs([experiment], f"tags.`raymi.id` = '{ours}'", max_results=1)
    return found[0] if found else None


def end_run(client: Any, run_id: str, status: str, when: float | None = None) -> None:
    """Sets the status of a run and its end, which is not before its start: a clock may jump back.

    Args:
        status: FINISHED, KILLED or FAILED.
        when: seconds since the epoch; None: now.
    """
    began = client.get_run(run_id).info.start_time or 0
    ended = int(1000 * (time.time() if when is None else when))
    client.set_terminated(run_id, status, end_time=max(began, ended))


def log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Parameters of a run, as text; any number of them. Those that it has stay as they are: MLflow
    refuses another value, and all that comes with it, and a continued run may have changed some."""
    from mlflow.entities import Param

    there = client.get_run(run_id).data.params
    everything = [Param(key, str(value)) for key, value in params.items() if key not in there]
    for first in range(0, len(everything), _MOST_PARAMS):
        client.log_batch(run_id, params=everything[first : first + _MOST_PARAMS])


def as_tag(text: str) -> str:
    """A text that may be the value of a tag: cut where it is too long."""
    return text if len(text) <= LONGEST_TAG else f"{text[: LONGEST_TAG - 3]}..."


def has_run(client: Any, run_id: str | None) -> bool:
    """Whether MLflow has a run, and nobody deleted it."""
    run = _get(client.get_run, run_id)
    return run is not None and run.info.lifecycle_stage == "active"


def has_model(client: Any, model_id: str | None) -> bool:
    """Whether MLflow has a logged model, and nobody deleted it."""
    return _get(client.get_logged_model, model_id) is not None


def _get(find: Callable[[str], Any], key: str | None) -> Any:
    """What has an id in MLflow; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return None if key is None else find(key)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
