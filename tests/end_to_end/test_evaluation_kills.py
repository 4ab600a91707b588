"""Evaluations whose command or workers are killed: the same command ends with the same numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import raymi_command
from raymi_command import wait_for
from tiny_runs import tiny_config

from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.engine.run_folder import RunFolder

pytestmark = pytest.mark.slow

WORDS = (
    "model=a", "eps=0.1", "attacks=pgd-200,autoattack-rand", "samples=72", "evaluation.block=12",
    "checks=0",
)  # fmt: skip
"""Six blocks; steps of a good second, so that one can be caught."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a finished run, "runs/a"."""
    folder = tmp_path_factory.mktemp("home")
    run = RunFolder(folder / "runs" / "a")
    run.path.mkdir(parents=True)
    run.write_config(
        config := tiny_config({"attack.eps": 0.05, "optim.epochs": 12, "mi.weight": 0.0})
    )
    assert train(config, LocalContext("cpu"), run).finished
    return folder


def start(home: Path, results: Path, workers: int = 2) -> subprocess.Popen:
    words = (*WORDS, f"results={results}", f"workers={workers}", "tracking.enabled=false")
    return raymi_command.start(home, *words, module="raymi.evaluate")


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """What it printed, once it has ended."""
    out, err = process.communicate(timeout=raymi_command.TIMEOUT)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return out


def rows(results: Path):
    """All outcomes but the time that they took."""
    (table,) = results.glob("*/outcomes.parquet")
    found = pq.read_table(table).drop_columns(["seconds"]).to_pylist()
    assert {row["attack"] for row in found} >= {"clean", "pgd-200", "apgd-ce-rand"}
    return found


def recorded(results: Path):
    """When each outcome was written."""
    return {path: path.stat().st_mtime_ns for path in results.rglob("*-*.parquet")}


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "AttackWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture(scope="module")
def expected(home, tmp_path_factory):
    """Never cut off, in one process without Ray."""
    results = tmp_path_factory.mktemp("expected")
    out = finish(start(home, results, workers=1))
    assert "no sign of false robustness" in out
    report = json.loads(next(results.glob("*/report.json")).read_text())
    clean, pgd, _ = report["results"]
    assert 0 < pgd["right"] < clean["right"], "or this shows little"
    return rows(results)


def has(results: Path, num: int) -> bool:
    return len(recorded(results)) >= num


def test_killed_or_asked_to_stop_the_command_goes_on_with_what_is_missing(home, expected, tmp_path):
    process = start(home, tmp_path)
    wait_for(lambda: has(tmp_path, 3) and len(workers_of(process)) == 2, process)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "nobody computes for nobody"
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = len(recorded(tmp_path))
        process = start(home, tmp_path)
        wait_for(partial(has, tmp_path, before + 2), process)
        process.send_signal(signum)
        began = time.monotonic()
        out = finish(process, code)
        assert time.monotonic() - began < 30
        assert f"stopped by {signum.name}; what was computed is kept in {tmp_path}" in out
        assert "to continue: python -m raymi.evaluate model=a" in out
    kept = recorded(tmp_path)
    assert len(kept) < len(expected)
    out = finish(start(home, tmp_path))
    assert "from the ledger" in out
    now = recorded(tmp_path)
    assert {path: now.get(path) for path in kept} == kept, "what was recorded was made again"
    assert rows(tmp_path) == expected


def test_killed_workers_are_replaced_and_a_second_command_is_kept_out(home, expected, tmp_path):
    process = start(home, tmp_path)
    wait_for(partial(has, tmp_path, 2), process)
    second = start(home, tmp_path, workers=1)
    for more in (2, 6):
        wait_for(lambda more=more: has(tmp_path, more) and workers_of(process), process)
        time.sleep(0.3)
        workers_of(process)[0].kill()
    _, err = second.communicate(timeout=200)
    assert second.returncode == 2
    assert "is going on in another process" in err
    out = finish(process)
    assert "a worker was lost" in out
    assert rows(tmp_path) == expected
