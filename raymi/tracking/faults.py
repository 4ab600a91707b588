"""Remedies for the faults of a tracking store: its database, its server, the network."""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import NamedTuple
from urllib.parse import urlsplit

from raymi.errors import UserError, storage_remedy
from raymi.tracking.database import SchemaError, is_known, sqlite_file
from raymi.tracking.store import error_line, shell_word, without_password

ELSEWHERE = "set MLFLOW_TRACKING_URI to another store"

_PACKAGES = {
    "psycopg2": "psycopg2-binary",
    "psycopg": "'psycopg[binary]'",
    "MySQLdb": "mysqlclient",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob azure-identity",
}
"""Package that provides a missing module, if named differently."""


@contextmanager
def store_errors_as_user_errors(uri: str) -> Iterator[None]:
    """Turns every error of a store, its server or the network into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = error_with_remedy(error, uri)
        raise UserError(f"MLflow at {without_password(uri)} fails: {problem}") from None


def error_with_remedy(error: Exception, uri: str) -> str:
    """Returns an error of a store with its remedy, in one line without password."""
    text = error_line(error, uri)
    if isinstance(error, UserError):  # its text ends with the remedy
        return text
    return f"{text}: {remedy_of(error, uri)}"


def remedy_of(error: Exception, uri: str) -> str:
    """Returns the remedy for an error of a store."""
    if isinstance(error, SchemaError):
        return _schema_remedy(uri, error.revision)
    causes = list(_causes(error))
    text = "\n".join(f"{type(one).__name__}: {one}" for one in causes)
    for fault in _FAULTS:
        if match := re.search(fault.pattern, text, re.IGNORECASE):
            return fault.remedy_for(uri, match.groupdict())
    cause = next((one for one in causes if isinstance(one, OSError)), None)
    if cause is not None and cause.filename is not None:
        if cause.errno in (errno.EACCES, errno.EPERM):
            return f"give your user access to {cause.filename}"
        return f"{cause.filename}: {storage_remedy(cause)}"
    if uri.startswith("http"):
        return f"look at the log of the server, or {ELSEWHERE}"
    return ELSEWHERE


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _schema_remedy(uri: str, revision: str | None) -> str:
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
        f"mlflow db upgrade {shell_word(uri)}"
    )


class _Fault(NamedTuple):
    """Kind of error.

    Attributes:
        pattern: of its message.
        remedy: with fields such as {database}.
        remedy_of_server: where the store is not a local file; empty: the same.
    """

    pattern: str
    remedy: str
    remedy_of_server: str = ""

    def remedy_for(self, uri: str, groups: dict[str, str | None]) -> str:
        """Returns the remedy for a store.

        Args:
            uri: of the store.
            groups: named groups of the match.
        """
        if "revision" in groups:
            return _schema_remedy(uri, groups["revision"])
        file = sqlite_file(uri)
        module = (groups.get("module") or groups.get("dialect") or "").split(".")[0]
        text = self.remedy if file is not None else self.remedy_of_server or self.remedy
        return text.format(
            database="the database" if file is None else shlex.quote(str(file)),
            folder="" if file is None else shlex.quote(str(file.parent)),
            host=urlsplit(without_password(uri)).netloc,
            package=_PACKAGES.get(module, module),
        )


_FAULTS = (
    _Fault(r"database schema \(found version (?P<revision>\w+)", ""),
    _Fault(r"locate revision identified by '(?P<revision>\w+)'", ""),
    _Fault(
        r"database is locked",
        "another process holds it: end that (fuser -v {database} shows it), or wait; without one, "
        f"its file system has no locks: {ELSEWHERE}, on a local disk",
    ),
    _Fault(
        r"readonly database",
        "make {database} and its folder {folder} writable",
        f"give your user write permission, or {ELSEWHERE}",
    ),
    _Fault(
        r"unable to open database file",
        f"make {{database}} readable and its folder writable, or {ELSEWHERE}",
    ),
    _Fault(
        r"database or disk is full|disk I/O error|No space left on device",
        "free space on the disk of {database}",
        "free space there",
    ),
    _Fault(
        r"not a database|disk image is malformed|no such table|table \S+ already exists",
        f"move {{database}} away and put a copy of it in its place, or {ELSEWHERE}",
    ),
    _Fault(
        r"No module named '(?P<module>[\w.]+)'|plugin: sqlalchemy.dialects:(?P<dialect>[\w.]+)",
        "pip install {package}",
    ),
    _Fault(
        r"Invalid Host header|DNS rebinding",
        "start the server with --allowed-hosts {host}, or reach it through localhost",
    ),
    _Fault(
        r"error code 401|not authenticated|UNAUTHENTICATED",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of the server, or put "
        "them into ~/.mlflow/credentials",
    ),
    _Fault(
        r"error code 403|Permission denied$|PERMISSION_DENIED",
        "ask the administrator of the server for permission, or log in as another user",
    ),
    _Fault(
        r"error code 404|not in a valid JSON format|Expecting value",
        f"no MLflow server is below this address: correct its host, port and path, or {ELSEWHERE}",
    ),
    _Fault(
        r"Name or service not known|NameResolution|getaddrinfo|nodename nor servname",
        f"correct the name of the host, or {ELSEWHERE}",
    ),
    _Fault(
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification",
        "set MLFLOW_TRACKING_SERVER_CERT_PATH to the certificate of the server, or use http:// if "
        "it has none",
    ),
    _Fault(
        r"Connection refused|ConnectionRefused|NewConnectionError|Connection aborted|RemoteDisconn"
        r"|timed? ?out|Timeout",
        f"start the server, or {ELSEWHERE}",
    ),
    _Fault(
        r'database "[^"]*" does not exist|Unknown database',
        f"create the database on its server, or {ELSEWHERE}",
    ),
    _Fault(
        r"password authentication failed|Access denied for user",
        "correct user and password",
    ),
)
"""Kinds of errors; the first that matches decides."""
