"""Any damaged file of a run, sweep or evaluation ends a command in one message, or is passed over.

Every file of real folders x every damage x every command that reads folders. The default tests take
a sample of that product, which is another one each day of the year; exhaustive ones take all of it.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_sweeps import begin, trained

from raymi import export, probe, report, standalone, train
from raymi.commands.cli import run_command
from raymi.commands.compare.run import ArmRun
from raymi.commands.evaluate.options import requested
from raymi.commands.evaluate.plan import plan_evaluation
from raymi.commands.report.options import plan_report
from raymi.commands.report.run import read_inputs
from raymi.evaluation.model_evaluation import ModelEvaluation
from raymi.evaluation.outcome_store import OutcomeStore
from raymi.ray_backend.train_driver import RunFailed
from raymi.runs.json_types import TrackingState
from raymi.runs.run_folder import RunFolder
from raymi.terminal.sweep import print_sweep
from raymi.tuning.results_table import trial_rows
from raymi.tuning.sweep_folder import find_sweep

RUN = [
    "data.limit=64", "model.width=0.25", "mi.hidden=8", "mi.base_width=4", "mi.depth=1",
    "attack.steps=1", "validation.steps=1", "evaluation.steps=1", "evaluation.max_samples=8",
    "probe.steps=1", "probe.batch=8", "probe.units=4", "epochs=1", "batch_size=32",
    "scaling.workers=1", "tracking.enabled=false",
]  # fmt: skip
EVALUATE = ["model=mine", "attacks=pgd-1", "samples=8", "checks=0", "tracking.enabled=false"]


def _keep(data: bytes) -> bytes:
    return data


def _flipped(data: bytes) -> bytes:
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :] if data else b"\x15"


def _other_types(data: bytes) -> bytes:
    """Every value of every object is of another type, line by line where that is JSON."""

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: other(one) for key, one in value.items()}
        return {"was": "other"} if isinstance(value, (str, int, float, bool)) else "other"

    def line(text: bytes) -> bytes:
        value = json.loads(text)
        kind = value.get("kind") if isinstance(value, dict) else None
        changed = other(value)
        return json.dumps({**changed, "kind": kind} if kind else changed).encode()

    try:
        return line(data)
    except ValueError:
        pass
    try:
        return b"\n".join(line(one) for one in data.splitlines()) + b"\n"
    except ValueError:
        return b"other"


def _nulls(data: bytes) -> bytes:
    """Every second value of the objects in it is null, line by line where that is JSON."""

    def line(text: bytes) -> bytes:
        value = json.loads(text)
        if not isinstance(value, dict):
            return b"null"
        kept = {k: v if k == "kind" or i % 2 else None for i, (k, v) in enumerate(value.items())}
        return json.dumps(kept).encode()

    try:
        return line(data)
    except ValueError:
        pass
    try:
        return b"\n".join(map(line, data.splitlines())) + b"\n"
    except ValueError:
        return b"null"


def _without_fields(data: bytes) -> bytes:
    """Every event has its kind alone."""
    try:
        kinds = [json.loads(one)["kind"] for one in data.splitlines()]
    except (ValueError, KeyError, TypeError):
        return b'{"kind": "start"}'
    return b"".join(json.dumps({"kind": kind}).encode() + b"\n" for kind in kinds)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "a list": lambda data: b"[1, 2]\n",
    "null": lambda data: b"null\n",
    "an object": lambda data: b"{}\n",
    "a text": lambda data: b'"x"\n',
    "a number": lambda data: b"1e999\n",
    "deep": lambda data: b"[" * 100_000,
    "other types": _other_types,
    "nulls": _nulls,
    "without fields": _without_fields,
    "random bytes": lambda data: random.Random(0).randbytes(max(64, len(data))),
    "a flipped byte": _flipped,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run that was probed and evaluated, and a sweep of one trial."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert standalone.main(["name=mine", *RUN]) == 0
        assert probe.main(["run=mine", "probe.steps=1"]) == 0
        folder = RunFolder(home / "runs" / "mine")
        folder.write_about({"id": "0", "recipe": "quickstart", "command": "python -m raymi.train"})
        delivered = TrackingState(uri=f"sqlite:///{home}/mlflow.db", run_id="1", offset=1)
        folder.tracking.write_text(delivered.model_dump_json())
        folder.machine_log(0).write_text(
            '{"kind": "machine", "time": 1.0, "metrics": {"x": 1.0}}\n'
        )
        folder.warnings.write_text("MI dominates\n")
        (evaluation,) = evaluations(EVALUATE)
        (evaluation.store.folder / "report.json").write_text(json.dumps(a_report(evaluation.store)))
        sweep = begin(home / "sweeps" / "search")
        study = sweep.study()
        trained(sweep, values=study.ask().values)
        yield home


def a_report(store: OutcomeStore) -> dict[str, Any]:
    """Files that an evaluation writes at its end."""
    one = {"name": "pgd-1", "accuracy": 0.5, "low95": 0.2, "high95": 0.8}
    return {
        "question": dict(store.protocol), "data": "digits-test-8", "num": 8, "results": [one],
        "false_robustness": [],
    }  # fmt: skip


def evaluations(words: list[str]) -> list[ModelEvaluation]:
    """The evaluations of a command line, with their ledgers open."""
    _, targets = plan_evaluation(requested(words)).evaluations("cpu")
    for target in targets:
        assert target.store.identity
    return targets


def _evaluate(words: list[str]) -> int:
    evaluations(words)
    return 0


def _report(words: list[str]) -> int:
    read_inputs(plan_report(words))
    return 0


def _compare(words: list[str]) -> int:
    folder = RunFolder(Path("runs/mine"))
    ArmRun("at", 0, folder, folder.read_config(), ()).result()
    return 0


def _sweep(words: list[str]) -> int:
    sweep = find_sweep("search", Path("sweeps").absolute())
    study = sweep.study()
    print_sweep(Console(), sweep, trial_rows(sweep, study))
    for trial in study:
        sweep.config_of(trial.values)
        for run in sweep.runs_of(trial.number):
            sweep.is_finished(run)
    return 0


COMMANDS: dict[str, Callable[[], int]] = {
    "standalone": lambda: standalone.main(["name=mine", *RUN]),
    "resume": lambda: train.main(["resume=mine"]),
    "evaluate": lambda: run_command(_evaluate, EVALUATE),
    "report": lambda: run_command(_report, ["mine", "samples=8", "tracking.enabled=false"]),
    "report of a sweep": lambda: run_command(_report, ["sweeps/search/trials/0000", "samples=0"]),
    "whole report": lambda: report.main(["mine", "samples=8", "tracking.enabled=false"]),
    "probe": lambda: probe.main(["run=mine", "probe.steps=1"]),
    "export": lambda: export.main(["model=mine"]),
    "compare": lambda: run_command(_compare, []),
    "tune": lambda: run_command(_sweep, []),
    "reuse": lambda: train.main(["mi.pretrained=mine", *RUN[:5], "--dry-run"]),
}
SLOW = ("whole report",)


def files_of(home: Path) -> list[str]:
    """Files of the folders that raymi reads, weights and checkpoints left out."""
    found = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size]
    skipped = (".safetensors", ".pt", ".lock")
    return sorted(str(one.relative_to(home)) for one in found if one.suffix not in skipped)


def check(home: Path, file: str, damage: str, command: str, patch: pytest.MonkeyPatch) -> str:
    """Runs a command on a copy of the folders with one damaged file; what is wrong, or nothing."""

    def launch(*_: Any, **__: Any) -> None:
        raise RunFailed("not in this test")

    copy = home.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home, copy)
    path = copy / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    patch.chdir(copy)
    patch.setattr("raymi.commands.train.run.launch", launch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = COMMANDS[command]()
    except BaseException as error:
        return f"{file}, {damage}, {command}: {type(error).__name__}: {error}"
    return "" if code in (0, 1, 2) else f"{file}, {damage}, {command}: exit code {code}"


def product(home: Path) -> list[tuple[str, str, str]]:
    return [(f, d, c) for f in files_of(home) for d in DAMAGES for c in COMMANDS]


def reads(file: str, command: str) -> bool:
    """Returns whether a command reads a file."""
    of_sweep = file.startswith("sweeps")
    return of_sweep == (command in ("tune", "report of a sweep"))


def test_undamaged_folders_work(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DAMAGES, "none", _keep)
    names = {Path(file).name for file in files_of(home)}
    assert names >= {
        "config.json", "run.json", "tracking.json", "journal.jsonl", "machine-0.jsonl",
        "warnings.log", "probe-best.json", "question.json", "attacks.json", "report.json",
        "sweep.json", "study.db",
    }  # fmt: skip
    for command in COMMANDS:
        if command not in SLOW:
            assert check(home, "runs/mine/run.json", "none", command, monkeypatch) == ""
            assert "error: " not in capsys.readouterr().err, command


def test_a_damaged_file_gives_a_message_or_is_skipped(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = [one for one in product(home) if reads(one[0], one[2]) and one[2] not in SLOW]
    found = [check(home, *one, monkeypatch) for one in random.Random(7).sample(everything, 40)]
    assert [one for one in found if one] == []
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.exhaustive
def test_every_damage_of_every_file_gives_a_message_or_is_skipped(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [one for one in product(home) if reads(one[0], one[2])]
    found = [check(home, *one, monkeypatch) for one in everything]
    assert [one for one in found if one] == []


@pytest.mark.parametrize(
    ("file", "command", "says"),
    [
        ("config.json", "export", "config.json is damaged"),
        ("run.json", "resume", "run.json is damaged"),
        ("tracking.json", "evaluate", "tracking.json is damaged"),
        ("journal.jsonl", "evaluate", "does not say what the run mine was trained on"),
    ],
)
def test_the_message_names_the_file_and_the_remedy(
    home: Path,
    file: str,
    command: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check(home, f"runs/mine/{file}", "a list", command, monkeypatch) == ""
    error = capsys.readouterr().err
    assert says in error
    assert error.count("error: ") == 1


def test_a_broken_line_of_a_journal_loses_that_line_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    journal = Path("runs/mine/journal.jsonl")
    first, *others = journal.read_bytes().splitlines(keepends=True)
    broken = [b"\xff\xfe\n", b"[1]\n", b'{"kind": "epoch", "epoch": "two"}\n', b'{"kind": "ep\n']
    journal.write_bytes(b"".join([first, *broken, *others]))
    with pytest.warns(UserWarning, match="journal.jsonl is damaged") as caught:
        assert export.main(["model=mine"]) == 0
    assert len({str(one.message) for one in caught}) == 1
