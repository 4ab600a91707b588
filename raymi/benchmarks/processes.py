"""Validation that need processes of their own: started, waited for, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymi.benchmarks.section import MeasurementFailed

_POLL = 0.05  # seconds


def in_processes(
    job: Mapping[str, Any], num: int = 1, threads: int = 1, module: str = "raymi.benchmarks.child"
) -> list[dict[str, Any]]:
    """Runs a job in fresh processes, which find each other by a file.

    Args:
        job: JSON values; `kind` names one of the module's kinds of jobs, and the list `each` has
            what differs between processes.
        num: number of processes.
        threads: threads of each process.
        module: program of each process, which passes its kinds of jobs to `child.main`; found
            where this process finds its own modules.

    Returns:
        The result of each process, by rank.

    Raises:
        MeasurementFailed: a process ended without a result.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    with tempfile.TemporaryDirectory(prefix="raymi-bench-") as folder:
        place = Path(folder)
        (place / "job.json").write_text(json.dumps(dict(job)))
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(num):
                words = [sys.executable, "-m", module, folder]
                with (place / f"output-{rank}").open("wb") as output:
                    processes.append(
                        subprocess.Popen(
                            [*words, str(rank), str(num)],
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,  # Ctrl-C is for us, who then end them
                        )
                    )
            _wait(processes, place)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [json.loads((place / f"result-{rank}").read_text()) for rank in range(num)]


def _wait(processes: list[subprocess.Popen[bytes]], place: Path) -> None:
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                said = (place / f"output-{rank}").read_text(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(said) if line.strip()), "")
                raise MeasurementFailed(last or f"a process ended with exit code {code}")
        if all(code == 0 for code in codes):
            return
        time.sleep(_POLL)
