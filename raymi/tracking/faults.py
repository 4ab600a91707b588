"""Remedies for the faults of a tracking store: its database, its server, the network."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from raymi.errors import UserError, storage_remedy
from raymi.tracking.database import SchemaError, is_known, sqlite_file
from raymi.tracking.store import for_command, in_one_line, without_password

ELSEWHERE = "set MLFLOW_TRACKING_URI to another store"

_PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
}
"""Packages by the module that is missing, where their names differ."""

Match = re.Match[str]
Remedy = Callable[[str, Match], str]


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turns every error of a store, its server or the network into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = problem_of(error, uri)
        raise UserError(f"MLflow at {without_password(uri)} fails: {problem}") from None


def problem_of(error: Exception, uri: str) -> str:
    """Returns what went wrong with a store, in one line with the remedy and without password."""
    text = in_one_line(error, uri)
    if isinstance(error, UserError):  # its text ends with the remedy
        return text
    return f"{text}: {remedy_of(error, uri)}"


def remedy_of(error: Exception, uri: str) -> str:
    """Returns what the user can do about an error of a store."""
    if isinstance(error, SchemaError):
        return _of_schema(uri, error.revision)
    text = _with_causes(error)
    for pattern, remedy in _REMEDIES:
        if match := re.search(pattern, text, re.IGNORECASE):
            return remedy(uri, match)
    cause = _os_error(error)
    if cause is not None and cause.filename is not None:
        if cause.errno in (errno.EACCES, errno.EPERM):
            return f"give your user access to {cause.filename}"
        return f"{cause.filename}: {storage_remedy(cause)}"
    if uri.startswith("http"):
        return f"look at the log of the server, or {ELSEWHERE}"
    return ELSEWHERE


def _with_causes(error: BaseException) -> str:
    return "\n".join(f"{type(one).__name__}: {one}" for one in _chain(error))


def _os_error(error: BaseException) -> OSError | None:
    return next((one for one in _chain(error) if isinstance(one, OSError)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _of_schema(uri: str, revision: str | None) -> str:
    installed = f"the installed MLflow {version('mlflow')}"
    if revision is None or revision == "None":
        return (
            "its tables hold data and were made by another program, or by a process that was "
            f"interrupted: put a copy of the database in its place, or {ELSEWHERE}"
        )
    if not is_known(revision):
        return f"it is newer than {installed}: pip install --upgrade mlflow"
    return (
        f"it is older than {installed}: end everything that uses it, keep a copy, and run: "
        f"mlflow db upgrade {for_command(uri)}"
    )


def _file(uri: str) -> str:
    file = sqlite_file(uri)
    return "the database" if file is None else shlex.quote(str(file))


def _locked(uri: str, _: Match) -> str:
    file = _file(uri)
    return (
        f"another process holds it: end that (fuser -v {file} shows it), or wait; where none does, "
        f"its file system has no locks: {ELSEWHERE}, on a local disk"
    )


def _not_writable(uri: str, _: Match) -> str:
    file = sqlite_file(uri)
    if file is None:
        return f"give your user write permission, or {ELSEWHERE}"
    return f"make {_file(uri)} and its folder {shlex.quote(str(file.parent))} writable"


def _not_opened(uri: str, _: Match) -> str:
    return f"make {_file(uri)} readable and its folder writable, or {ELSEWHERE}"


def _full(uri: str, _: Match) -> str:
    return f"free space on the disk of {_file(uri)}" if sqlite_file(uri) else "free space there"


def _damaged(uri: str, _: Match) -> str:
    return f"move {_file(uri)} away and put a copy of it in its place, or {ELSEWHERE}"


def _schema(uri: str, match: Match) -> str:
    return _of_schema(uri, match["revision"])


def _no_module(_: str, match: Match) -> str:
    module = (match["module"] or match["dialect"] or "").split(".")[0]
    return f"pip install {_PACKAGES.get(module, module)}"


def _no_login(_: str, __: Match) -> str:
    return (
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of the server, or put "
        "them into ~/.mlflow/credentials"
    )


def _unreachable(uri: str, _: Match) -> str:
    return f"start the server, or {ELSEWHERE}"


def _foreign_host(uri: str, _: Match) -> str:
    host = urlsplit(without_password(uri)).netloc
    return f"start the server with --allowed-hosts {host}, or reach it through localhost"


def _text(remedy: str) -> Remedy:
    return lambda uri, match: remedy


_REMEDIES: tuple[tuple[str, Remedy], ...] = (
    (r"database schema \(found version (?P<revision>\w+)", _schema),
    (r"locate revision identified by '(?P<revision>\w+)'", _schema),
    (r"database is locked", _locked),
    (r"readonly database", _not_writable),
    (r"unable to open database file", _not_opened),
    (r"database or disk is full|disk I/O error|No space left on device", _full),
    (r"not a database|disk image is malformed|no such table|table \S+ already exists", _damaged),
    (
        r"No module named '(?P<module>[\w.]+)'|plugin: sqlalchemy.dialects:(?P<dialect>[\w.]+)",
        _no_module,
    ),
    (r"Invalid Host header|DNS rebinding", _foreign_host),
    (r"error code 401|not authenticated|UNAUTHENTICATED", _no_login),
    (
        r"error code 403|Permission denied$|PERMISSION_DENIED",
        _text("ask who runs the server for permission, or log in as another user"),
    ),
    (
        r"error code 404|not in a valid JSON format|Expecting value",
        _text(
            f"no MLflow server is below this address: correct its host, port and path, or "
            f"{ELSEWHERE}"
        ),
    ),
    (
        r"Name or service not known|NameResolution|getaddrinfo|nodename nor servname",
        _text(f"correct the name of the host, or {ELSEWHERE}"),
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification",
        _text(
            "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of the server, or use "
            "http:// where it has none"
        ),
    ),
    (
        r"Connection refused|ConnectionRefused|NewConnectionError|Connection aborted|RemoteDisconn",
        _unreachable,
    ),
    (r"timed? ?out|Timeout", _unreachable),
    (r"password authentication failed|Access denied for user", _text("correct user and password")),
)
"""Patterns of errors, the first that matches counts, with the remedy for each."""
