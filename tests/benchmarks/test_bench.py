"""`python -m raymi.bench`: tables, JSON, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from raymi import bench
from raymi.benchmarks.arms import AT
from raymi.benchmarks.crafting import attack_calls
from raymi.benchmarks.memory import peak_in_process
from raymi.benchmarks.plan import PARTS
from raymi.benchmarks.processes import run_processes
from raymi.benchmarks.scaling import plain_run
from raymi.benchmarks.section import MeasurementFailed, number
from raymi.collectives import Collectives
from raymi.commands.bench.command import MEASURES, planned
from raymi.commands.bench.options import requested

TINY = (
    "model.name=small-cnn", "model.depth=4", "mi.hidden=16", "mi.base_width=4", "image_size=16",
    "batch_size=4", "attack.steps=1", "rounds=2", "use_gpu=false",
)  # fmt: skip
ONE_RUN = ("runs=1", "loop_steps=1", "workers=2")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_part_has_a_function() -> None:
    assert list(MEASURES) == list(PARTS)


@pytest.mark.slow
def test_parts_in_this_process_are_measured_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    parts = "parts=phases,profile,ratios,crafting"
    assert bench.main([*TINY, parts, "threads=1", "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    for line in (
        "│ PGD crafting ",
        "│ released / AT ",
        "│ raymi, both ",
        "seed 0",
        "torch ",
    ):
        assert line in out, line
    assert "<= 1.45" in out
    assert len(err.splitlines()) == 4
    content = json.loads(file.read_text())
    assert list(content) == ["setting", "config", "parts"]
    assert content["setting"]["threads"] == 1
    assert content["setting"]["command"].startswith("python -m raymi.bench model.name=small-cnn")
    assert content["config"]["optim"]["batch_size"] == 4
    results = content["parts"]
    assert list(results) == ["phases", "profile", "ratios", "crafting"]
    assert sum(results["profile"]["microseconds"].values()) <= results["profile"]["total"]
    ratios = results["ratios"]
    seconds = ratios["seconds_per_step"]
    assert len(seconds) == 8
    assert all(len(each) == 2 and min(each) > 0 for each in seconds.values())
    each = [
        released / at
        for released, at in zip(
            seconds["whole step: released"], seconds["whole step: AT"], strict=True
        )
    ]
    middle = ratios["ratios"]["released / AT"]["whole step"]["median"]
    assert middle == pytest.approx(sum(each) / 2)
    phases = results["phases"]["ms_per_sample"]
    assert phases["AT"]["MI: estimators' update"] == 0
    assert phases["staged"]["MI: estimators' update"] == 0
    assert phases["joint"]["MI: estimators' update"] > 0
    assert phases["staged"]["MI: the classifier's term"] > 0
    assert set(results["crafting"]["times_as_fast"]) > {"torchattacks.PGD", "raymi, plain"}


def test_compared_attacks_have_the_same_network_and_images() -> None:
    made = {name: call() for name, call in attack_calls(planned(requested(TINY))).items()}
    assert len(made) == 5
    for name, x_adv in made.items():
        # one step of eps / 4 from random points of the ball; signs of gradients seldom differ
        assert (x_adv - made["raymi, plain"]).abs().max() <= 2 * 8 / 255 + 1e-6
        if name != "torchattacks.PGD":  # draws its own start
            assert (x_adv - made["raymi, plain"]).abs().mean() < 1e-3


def test_other_parts_continue_after_a_failed_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(plan: object) -> None:
        raise MeasurementFailed("no luck")

    monkeypatch.setitem(MEASURES, "profile", fails)
    assert bench.main([*TINY, "parts=profile,phases"]) == 1
    out = capsys.readouterr().out
    assert "failed: no luck" in out
    assert "│ PGD crafting " in out


def test_ctrl_c_shows_the_parts_measured_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(plan: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(MEASURES, "profile", interrupted)
    assert bench.main([*TINY, "parts=phases,profile,crafting"]) == 130
    out, err = capsys.readouterr()
    assert "│ PGD crafting " in out
    assert "machine " in out
    assert "interrupted" in err


def test_help_lists_parts_and_options_and_unknown_parts_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench.main(["--help", "all"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {part} " in out for part in PARTS)
    assert "\n  rounds=5  (whole number >= 1)\n" in out
    assert bench.main(["parts=nonsense"]) == 2
    assert "unknown part 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


BLOCKED = """
import sys
sys.modules["ray"] = sys.modules["mlflow"] = None  # importing either raises ModuleNotFoundError
from raymi import bench
code = bench.main(sys.argv[1:])
assert not {n.split(".")[0] for n, m in sys.modules.items() if m is not None} & {"ray", "mlflow"}
sys.exit(code)
"""


def test_bench_runs_without_ray_and_mlflow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *TINY, "parts=phases"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_too_many_workers_are_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymi.benchmarks.plan.available_cores", lambda: 2)
    assert bench.main(["parts=scaling", "workers=50", "use_gpu=false"]) == 0
    assert "not measured: 50 workers need as many cores" in capsys.readouterr().out


def fails_on_rank_one(group: Collectives, device: torch.device, word: str) -> str:
    if group.rank == 1:
        raise ValueError(f"not {word}")
    return word


@pytest.mark.exhaustive
def test_failure_in_a_process_is_reported() -> None:
    assert run_processes(fails_on_rank_one, [("a",), ("b",)], connected=False) == ["a", "b"]
    with pytest.raises(MeasurementFailed, match="ValueError: not b"):
        run_processes(fails_on_rank_one, [("a",), ("b",)])


@pytest.mark.exhaustive
def test_fresh_processes_return_seconds_and_peak_memory() -> None:
    plan = planned(requested([*TINY, *ONE_RUN]))
    assert plain_run(plan, 2) > 0
    memory = peak_in_process(plan, AT)
    assert memory["fits"]
    assert memory["peak"] > memory["before"] > 0


@pytest.mark.exhaustive
def test_parts_in_other_processes_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "raymi.bench", *TINY, *ONE_RUN,
         "parts=scaling,memory", "--json", str(file)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())["parts"]
    runs = {name: len(each) for name, each in results["scaling"]["seconds"].items()}
    assert runs == {"1 worker": 1, "2 workers": 1, "2 workers apart": 1}
    memory = results["memory"]["bytes"]
    assert all(one["fits"] and one["peak"] > one["before"] > 0 for one in memory.values())


WAIT = 300.0  # seconds


def measuring(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Returns the processes that a command started for a measurement."""
    children = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in child.cmdline()):
                children.append(child)
    return children


def _enable_ctrl_c() -> None:
    """Restores the default action of SIGINT, which a shell disables for background processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.exhaustive),
        (signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_the_command_and_its_processes(
    tmp_path: Path, signum: int, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "raymi.bench", *TINY, "parts=scaling", "workers=2",
         "loop_steps=100000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=_enable_ctrl_c,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + WAIT
        while not (children := measuring(process)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no process was started"
            time.sleep(0.05)
        os.kill(process.pid, signum)
        _, err = process.communicate(timeout=WAIT)
        assert process.returncode == code, err
        assert "Traceback" not in err
        _, alive = psutil.wait_procs(children, timeout=WAIT)
        assert not alive
    finally:
        process.kill()
