"""The programs and the notebook of `examples/` run as their texts say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from ports import free_ports

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TESTED = {
    "own_data_and_network.py", "namid_in_a_loop.py", "own_defence.py", "train_and_evaluate.ipynb"
}  # fmt: skip


def output_of(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == TESTED


@pytest.mark.slow
def test_own_data_and_network(tmp_path: Path) -> None:
    out = output_of(tmp_path, str(EXAMPLES / "own_data_and_network.py"))
    assert "'test/pgd40_acc'" in out
    assert re.search(r"^pgd-20: [\d.]+% \([\d.]+% to [\d.]+%\)$", out, re.MULTILINE)


@pytest.mark.slow
def test_own_defence_from_python_and_by_command(tmp_path: Path) -> None:
    out = output_of(tmp_path, str(EXAMPLES / "own_defence.py"))
    assert "'test/pgd40_acc'" in out
    config = tmp_path / "runs" / "command" / "config.json"
    output_of(
        EXAMPLES, "-m", "raymi.standalone", "recipe=quickstart-at", "name=command", "epochs=1",
        "loss.base=own_defence:LogitPairing", "beta=2", "data.limit=100", f"out={tmp_path / 'runs'}"
    )  # fmt: skip
    assert json.loads(config.read_text())["loss"]["beta"] == 2.0


def losses(out: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss (-?[\d.]+),", out)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_namid_in_a_loop_learns(tmp_path: Path, processes: int) -> None:
    program = EXAMPLES / "namid_in_a_loop.py"
    assert len(program.read_text().splitlines()) < 40
    (port,) = free_ports(1)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    found = losses(output_of(tmp_path, *(torchrun if processes == 2 else []), str(program)))
    assert len(found) == 5 * processes
    assert min(found[-processes:]) < max(found[:processes])


@pytest.mark.exhaustive
def test_notebook(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "train_and_evaluate.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert (tmp_path / "runs" / "notebook").is_dir()
    assert (tmp_path / "report" / "index.html").is_file()
