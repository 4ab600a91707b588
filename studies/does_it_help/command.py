"""`python -m studies.does_it_help OUT [stage=1] [processes=2]`: runs or continues the study.

Each (arm, seed) is a process with one thread. Results go to studies/does_it_help/results/, a file
each, and summary.md beside them; units with a result are not repeated. Runs and outcomes of attacks
go to OUT, from which a killed unit continues. `$RAYMI_DATA` holds the images of CIFAR-10.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

from raymi.commands.cli import EXIT_FAILED, run_command
from raymi.commands.option_types import known, writable_folder
from raymi.fields import Count, Section
from raymi.files import save
from raymi.signals import ended_by_sigterm
from studies.does_it_help.setting import STAGES, Unit, units
from studies.does_it_help.summary import summary
from studies.does_it_help.unit import result_file
from studies.words import read_words

RESULTS = Path(__file__).with_name("results")


class StudyOptions(Section):
    """Options of the study."""

    stage: Annotated[str, known("stage", STAGES)] = "1"
    """Stage."""
    processes: Count = 2
    """Units at the same time, with a thread each."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_study, argv)


def _study(words: list[str]) -> int:
    if {"--help", "-h"} & set(words):
        print(__doc__)
        return 0
    options, place = read_words(words, StudyOptions, needs_place=True)
    assert place is not None
    out = writable_folder(place)
    missing = [unit for unit in units(options.stage) if not result_file(RESULTS, unit).is_file()]
    code = run_units(missing, out, RESULTS, options.processes)
    print(write_summary(options.stage, RESULTS))
    return code


def run_units(missing: list[Unit], out: Path, results: Path, processes: int) -> int:
    """Runs units side by side; returns an exit code.

    Args:
        missing: units, in order.
        out: folder of runs and outcomes.
        results: folder of results.
        processes: most units at the same time.
    """
    waiting, running = list(missing), dict[Unit, subprocess.Popen[bytes]]()
    failed = False
    (out / "logs").mkdir(parents=True, exist_ok=True)
    try:
        with ended_by_sigterm():
            while (waiting and not failed) or running:
                while waiting and not failed and len(running) < processes:
                    unit = waiting.pop(0)
                    print(f"{time.strftime('%H:%M:%S')} {unit.name}", flush=True)
                    running[unit] = _start(unit, out, results)
                time.sleep(0.5)
                for unit, process in list(running.items()):
                    if (code := process.poll()) is not None:
                        del running[unit]
                        write_summary(unit.stage, results)
                        if code:
                            print(f"{unit.name} ended with {code}: {_log(unit, out)}", flush=True)
                            failed = True
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return EXIT_FAILED if failed else 0


def write_summary(stage: str, results: Path) -> str:
    """Writes and returns the tables of the results of a stage."""
    found = [
        json.loads(path.read_text())
        for unit in units(stage)
        if (path := result_file(results, unit)).is_file()
    ]
    text = f"## Stage {stage}\n\n{summary(found)}"
    save(results / f"stage{stage}.md", text.encode(), "results are saved")
    return text


def _start(unit: Unit, out: Path, results: Path) -> subprocess.Popen[bytes]:
    words = (unit.stage, unit.arm, str(unit.seed), str(out), str(results))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with _log(unit, out).open("ab") as log:
        command = [sys.executable, "-m", "studies.does_it_help.unit", *words]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _log(unit: Unit, out: Path) -> Path:
    return out / "logs" / f"{unit.name}.log"
