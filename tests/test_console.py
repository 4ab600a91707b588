"""Console script `raymi`: lists the commands and runs one of them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import raymi
from raymi.__main__ import COMMANDS, main

MODULES = sorted(Path(raymi.__file__).parent.glob("*.py"))


def _has_main(module: Path) -> bool:
    tree = ast.parse(module.read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)


def test_every_command_is_listed() -> None:
    runnable = {module.stem for module in MODULES if _has_main(module)}
    runnable -= {"__main__", "config_reference"}  # the second one is for developers
    assert set(COMMANDS) == runnable


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: raymi COMMAND")
    for name, text in COMMANDS.items():
        assert len([line for line in lines if line.split(maxsplit=1) == [name, text]]) == 1
    assert max(map(len, lines)) < 100


def test_help_imports_no_library() -> None:
    code = (
        "import sys; from raymi.__main__ import main; main(['--help'])\n"
        "sys.exit(len({'torch', 'numpy', 'rich', 'pydantic', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"raymi {raymi.__version__}\n"


@pytest.mark.parametrize(
    ("word", "remedy"), [("trian", "did you mean train?"), ("lr=0.1", "there are train, ")]
)
def test_unknown_command_is_refused_with_the_remedy(
    word: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "--help"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: no command {word!r}: {remedy}")


@pytest.mark.parametrize("code", [0, 1, 2, 75, 130, 143])
def test_command_gets_the_remaining_words_and_returns_its_exit_code(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def command(words: list[str]) -> int:
        given.append(words)
        return code

    monkeypatch.setattr(import_module("raymi.train"), "main", command)
    monkeypatch.setattr(sys, "argv", ["raymi", "train", "lr=0.1", "--help"])
    assert main() == code
    assert main(["train"]) == code
    assert given == [["lr=0.1", "--help"], []]


def test_python_m_raymi_is_the_same(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "raymi", "train", "lrr=1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown key 'lrr': did you mean optim.lr?\n"


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_a_closed_pipe_ends_the_command_without_a_traceback(word: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "raymi", word], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
