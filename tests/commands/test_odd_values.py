"""Every command accepts an odd value or refuses it in a message, before any work.

Every key of every command x values that break parsers, paths, float32 or terminals; the default
tests take a sample of them.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from raymi import export, probe, standalone, train
from raymi.commands.bench import options as bench_options
from raymi.commands.cli import run_command
from raymi.commands.compare import options as compare_plan
from raymi.commands.evaluate import options as evaluation_request
from raymi.commands.report import options as report_options
from raymi.commands.select import options as selection_request
from raymi.commands.tune import options as tune_options
from raymi.config import Config
from raymi.errors import UserError
from raymi.fields import Section
from raymi.losses.registry import losses
from raymi.overrides import examine, leaves, nest

VALUES = [
    "x" * 5000, "9" * 5000, "\udcff", "a\udc80b", str(10**23), str(9**99), "1e400", "1e308",
    "1e-320", "nan", "-inf", "-0", "-1", "[]", "{}", "", "=", "a=b=c", "1e999999999/1", "1/1e999",
    "8/255/1",
    "0x10", "١٢", "~nobody-of-this-name/x", "a/" * 3000, "/dev/null/x", "/proc/x/y", "..", "[/]",
    "[red]x[/]", "\x1b[31mred", "\x1b]8;;http://x\x1b\\t\x1b]8;;\x1b\\", "two\nlines", "x\u202ey",
    "a,b," * 1000, "," * 100, "a:b", ":", "os:system", "models:/", "0..99999999999999999999",
    "none", "@", "pgd-" + "9" * 5000, "pgd-40@" + "9" * 400 + "eps", "{0}", "%s", "\0",
]  # fmt: skip
KEYS = [key for key, _ in leaves()]


def options_of(section: type[Section]) -> list[str]:
    return [key for key, _ in leaves(section)]


def parsing(parse: Callable[[Sequence[str]], object]) -> Callable[[list[str]], int]:
    """Returns a command that only parses and checks its words."""
    return lambda words: run_command(lambda given: int(parse(given) is None), words) // 2 * 2


COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str], list[str]]] = {
    "train": (lambda words: train.main([*words, "--dry-run"]), ["recipe", "resume", *KEYS], []),
    "standalone": (standalone.main, ["recipe", *KEYS], ["attack.steps=-1"]),
    "evaluate": (
        parsing(evaluation_request.requested),
        [*options_of(evaluation_request.EvaluateOptions), *filter(evaluation_request.takes, KEYS)],
        [],
    ),
    "select": (
        parsing(selection_request.requested),
        options_of(selection_request.SelectOptions),
        [],
    ),
    "report": (
        parsing(report_options.plan_report),
        [*options_of(report_options.ReportOptions), "data.root"],
        [],
    ),
    "bench": (
        parsing(bench_options.requested),
        [*options_of(bench_options.BenchOptions), *KEYS],
        ["parts=profile"],
    ),
    "tune": (
        parsing(tune_options.open_sweep),
        [*options_of(tune_options.TuneOptions), *KEYS],
        [],
    ),
    "compare": (
        parsing(compare_plan.plan_comparison),
        [*options_of(compare_plan.CompareOptions), *KEYS],
        [],
    ),
    "export": (export.main, ["model", "which", "folder", "out"], []),
    "probe": (probe.main, ["run", "model", "probe.steps", "attack.eps", "out"], []),
}


def check(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command; returns its problem, or an empty text."""
    body = COMMANDS[command][0]
    try:
        code = body(words)
    except BaseException as error:
        return f"{command} {words!r:.200}: {type(error).__name__}: {error!s:.300}"
    out, err = capsys.readouterr()
    odd = re.search(
        "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", out + err
    )
    if code not in (0, 2) or odd or (code == 2) != err.startswith("error: ") or len(err) > 20_000:
        return f"{command} {words!r:.200}: exit code {code}, {odd}, {err!r:.300}"
    return ""


def product() -> list[tuple[str, list[str]]]:
    return [
        (command, [*others, f"{key}={value}"])
        for command, (_, keys, others) in COMMANDS.items()
        for key in keys
        for value in VALUES
    ]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMI_DATA", str(tmp_path / "data"))


def test_odd_values_are_accepted_or_refused_in_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    some = random.Random(5).sample(product(), 250)
    assert [problem for one in some if (problem := check(*one, capsys))] == []


@pytest.mark.exhaustive
def test_all_odd_values_are_accepted_or_refused_in_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [problem for one in product() if (problem := check(*one, capsys))] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_words_are_refused_in_a_message(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in VALUES:
        words = [[value], [f"{value}={value}"], [f"--{value}"], ["lr=1", f"lr={value}"]]
        problems = [check(command, one, capsys) for one in words]
        assert [problem for problem in problems if problem] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim.lr": "1e308"}, "optim.lr: expected at most 1e+30, got 1e+308"),
        ({"optim.lr": "1e-320"}, "optim.lr: expected 0 or at least 1e-30"),
        ({"model.width": "1e20"}, "model.width: expected at most 256, got 1e+20"),
        ({"data.image_size": "100000"}, "data.image_size: expected at most 4096, got 100000"),
        ({"optim.batch_size": str(10**23)}, f"expected at most 1.04858e+06, got {10**23}"),
        ({"mi.hidden": str(10**9)}, "mi.hidden: expected at most 65536"),
        ({"tracking.machine_every": "1e300"}, "expected at most 1e+06, got 1e+300"),
        ({"scaling.workers": str(10**23)}, "expected at most 10000 workers"),
        ({"name": "a\x1bb"}, "expected a name without control characters, got 'a\\x1bb'"),
        ({"out": "~nobody-of-this-name/x"}, "no such user's home folder"),
        ({"loss.base": [1]}, f"loss.base: expected {' | '.join(losses())} | module:name, got [1]"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    (problem,) = examine(nest(settings))[1]
    assert message in problem


def test_accepted_numbers_fit_into_float32() -> None:
    for key in KEYS:
        for value in (1e38, 1e308, -1e308, 10**40):
            assert examine(nest({key: value}))[1], (key, value)


def test_message_is_printable_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, TextIOWrapper(written, "ascii", errors="strict"))

    def body(words: list[str]) -> int:
        print("± of é")
        raise UserError("no run 'ñandú ☃'")

    assert run_command(body, []) == 2
    sys.stdout.flush()
    sys.stderr.flush()
    assert b"\\xb1 of \\xe9" in written.getvalue()
    assert b"error: no run '\\xf1and\\xfa \\u2603'" in written.getvalue()


def test_defaults_are_within_their_bounds() -> None:
    assert examine(Config().model_dump())[1] == []
