"""Random kills of driver, worker, raylet and GCS under train, evaluate and tune."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from studies.faults.record import Fault, Outcome

TARGETS = {
    "driver": (),
    "worker": ("RayTrainWorker", "AttackWorker", "ray::"),
    "raylet": ("raylet/raylet",),
    "gcs": ("gcs_server",),
}
"""Processes that are killed, by words of their command lines; the driver is the command itself."""

_LIMIT = 600.0  # seconds for one start of a command
_TINY = (
    "data.limit=300", "attack.steps=2", "validation.steps=2", "mi.hidden=16", "mi.base_width=4",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A command that is killed and given again until it finishes.

    Args:
        command: of raymi.
        words: command line of the first start.
        again: command line of all further starts.
        longest: latest moment of a kill, in seconds after a start.
    """

    command: str
    words: tuple[str, ...]
    again: tuple[str, ...]
    longest: float


_ATTACKS = (
    "model=m", "eps=0.1", "attacks=pgd-40,apgd-ce", "evaluation.block=20", "checks=0", "workers=2",
    "tracking.enabled=false",
)  # fmt: skip
_SEARCH = (
    "space=smoke", "name=k", "tune.trials=2", "tune.search=random", "tune.scheduler=none",
    "tune.finalists=0", "tune.test_suite=none", "tracking.enabled=false", "epochs=12", *_TINY,
)  # fmt: skip
WORKS = (
    Work(
        "train",
        ("name=k", "tracking.enabled=false", "optim.epochs=30", "evaluation.steps=2", *_TINY),
        ("resume=k",),
        45.0,
    ),
    Work("evaluate", _ATTACKS, _ATTACKS, 35.0),
    Work("tune", _SEARCH, ("resume=k",), 45.0),
)


def run_all(folder: Path, seed: int, number: int) -> list[Fault]:
    """Kills processes under each command until `number` kills have been made in all.

    Args:
        folder: empty, for runs and results.
        seed: of targets and moments.
        number: kills in all, shared by the commands.
    """
    rng = random.Random(seed)
    model = ("name=m", "tracking.enabled=false", "optim.epochs=4", *_TINY)
    assert _command(folder, "train", model).wait() == 0, "the model of the evaluations"
    faults: list[Fault] = []
    targets = list(TARGETS) * (1 + number // (len(WORKS) * len(TARGETS)))
    for work in WORKS:
        expected = _results(_undisturbed(folder, work), work)
        plan = targets[: max(1, number // len(WORKS))]
        rng.shuffle(plan)
        home = folder / f"killed-{work.command}"
        _prepare(folder, home)
        faults += _killed(home, work, plan, rng, expected)
    return faults


def _prepare(folder: Path, home: Path) -> None:
    (home / "runs").mkdir(parents=True)
    (home / "runs" / "m").symlink_to(folder / "runs" / "m", target_is_directory=True)


def _undisturbed(folder: Path, work: Work) -> Path:
    home = folder / f"whole-{work.command}"
    _prepare(folder, home)
    process = _command(home, work.command, work.words)
    assert process.wait() == 0, f"{work.command} without a kill"
    return home


def _killed(
    home: Path, work: Work, plan: list[str], rng: random.Random, expected: dict[str, object]
) -> list[Fault]:
    """Makes the kills of a plan, finishes the command and classifies the kills by its results."""
    made: list[tuple[str, str, str]] = []
    words, problem = work.words, ""
    for target in plan:
        process = _command(home, work.command, words)
        moment = rng.uniform(2.0, work.longest)
        killed = _kill(process, target, moment)
        code, output = _end(process, home)
        made.append((target, f"after {moment:.1f} s", _last(output)))
        if "Traceback" in output:
            problem = problem or f"traceback after a killed {target}"
        if code is None:
            problem = problem or f"no end after a killed {target}"
        if not killed:
            made[-1] = (target, f"after {moment:.1f} s (had ended)", _last(output))
        print(f"{work.command}: killed {target} after {moment:.1f} s: code {code}",
              f"({_last(output)})", flush=True)  # fmt: skip
        words = work.again if _begun(home, work) else work.words
    process = _command(home, work.command, words)
    code, output = _end(process, home)
    same = code == 0 and _results(home, work) == expected
    outcome: Outcome = "equal" if same else "lost"
    if problem.startswith("traceback"):
        outcome = "traceback"
    elif problem:
        outcome = "hang"
    return [
        Fault(f"killed {target}", work.command, moment, outcome, message)
        for target, moment, message in made
    ]


def _command(home: Path, command: str, words: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"raymi.{command}", *words],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=(home / "output.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def _kill(process: subprocess.Popen[str], target: str, moment: float) -> bool:
    """Kills a process of the command at a moment or, if it does not exist yet, when it starts."""
    began = time.monotonic()
    while process.poll() is None and time.monotonic() < began + _LIMIT:
        time.sleep(0.1)
        if time.monotonic() < began + moment:
            continue
        victims = _victims(process, target)
        if victims:
            with suppress(psutil.NoSuchProcess):
                victims[0].kill()
                return True
    return False


def _victims(process: subprocess.Popen[str], target: str) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        driver = psutil.Process(process.pid)
        if target == "driver":
            return [driver]
        victims = []
        for child in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                line = " ".join(child.cmdline())
                if any(word in line for word in TARGETS[target]):
                    victims.append(child)
        return victims
    return []


def _end(process: subprocess.Popen[str], home: Path) -> tuple[int | None, str]:
    """Waits for the end of a command; returns its exit code, None at the limit, and its output."""
    code: int | None
    try:
        code = process.wait(_LIMIT)
    except subprocess.TimeoutExpired:
        code = None
        process.kill()
        process.wait()
    return code, (home / "output.log").read_text(errors="backslashreplace")


def _last(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    reports = [line for line in lines if "failed" in line or "error: " in line or "lost" in line]
    return (reports or lines or [""])[-1][:200]


def _begun(home: Path, work: Work) -> bool:
    folder = {"train": "runs/k/config.json", "tune": "sweeps/k/sweep.json"}.get(work.command)
    return folder is not None and (home / folder).is_file()


def _results(home: Path, work: Work) -> dict[str, object]:
    """Results that must not depend on kills: weights, outcomes of attacks, or trials."""
    if work.command == "train":
        names = ("best", "last")
        return {name: (home / f"runs/k/{name}.safetensors").read_bytes() for name in names}
    if work.command == "evaluate":
        (table,) = home.glob("evaluations/*/outcomes.parquet")
        return {"outcomes": pq.read_table(table).drop_columns(["seconds"]).to_pylist()}
    trials: dict[str, object] = {}
    for journal in sorted(home.glob("sweeps/k/trials/*/journal.jsonl")):
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        epochs = {event["epoch"]: event["metrics"] for event in events if event["kind"] == "epoch"}
        trials[journal.parent.name] = {
            epoch: {key: value for key, value in metrics.items() if key.startswith("val/")}
            for epoch, metrics in epochs.items()
        }
    return trials
