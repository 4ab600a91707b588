"""A real MLflow server in its own process, and a proxy that makes it slow or lets it fail."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from parent_death import end_with_parent
from ports import free_ports
from raymi_command import environment

START_SECONDS = 120.0


class Server:
    """An MLflow server with artifacts in a folder and a database there or elsewhere."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.folder, (self.port,) = folder, free_ports(1)
        self.database = database or f"sqlite:///{folder / 'server.db'}"
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),  # eight more processes
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent(),
        )
        wait_for(f"{self.uri}/health", self._process, self.folder / "server.log")

    def kill(self) -> None:
        """Kills it, as the loss of its node would."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def wait_for(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    """Waits until a server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")
        with suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace"))


class Proxy:
    """Proxy with a `mode`: "pass", "slow" (one second a request), "fail" (500) or "lose"
    (the server does what is asked, its answer is lost)."""

    def __init__(self, server: Server) -> None:
        self.mode, self.failed = "pass", 0
        handler = type("Handler", (_Handler,), {"proxy": self, "target": server.uri})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[Proxy]
    target: ClassVar[str]

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.proxy.mode == "fail":
            self.proxy.failed += 1
            self.send_error(500)
            return
        if self.proxy.mode == "slow":
            time.sleep(1)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        request = urllib.request.Request(
            self.target + self.path, body or None, kept, method=self.command
        )
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError:
            self.send_error(502)
            return
        content = answer.read()
        if self.proxy.mode == "lose":
            self.proxy.failed += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _hand_on

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""
