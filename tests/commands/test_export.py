"""Exported classifiers run without raymi."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs
import torch
from raymi_command import environment

from raymi import export
from raymi.commands.find_model import find_model_source
from raymi.runs.run_folder import RunFolder

USES_IT = """
import sys
sys.modules["raymi"] = None  # not importable
import torch
from architecture import load_model
x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
torch.save(load_model()(x).detach(), "logits.pt")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `mine`, of one epoch."""
    folder = tmp_path_factory.mktemp("home")
    run = RunFolder(folder / "runs" / "mine")
    settings = {"optim.epochs": 1}
    tiny_runs.tiny_run(0, 1, run.path, settings, [])
    run.write_config(tiny_runs.tiny_config(settings))
    return folder


@pytest.fixture(autouse=True)
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.mark.parametrize("which", ["best", "last"])
def test_an_exported_classifier_has_the_same_logits_without_raymi(home, capsys, which):
    assert export.main(["model=mine", f"which={which}"]) == 0
    folder = home / "exports" / f"mine-{which}"
    assert str(folder) in capsys.readouterr().out
    subprocess.run([sys.executable, "-c", USES_IT], cwd=folder, env=environment(), check=True)
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = find_model_source("mine", tiny_runs.tiny_config(), which=which).source.load()(x)
    theirs = torch.load(folder / "logits.pt", weights_only=True)
    torch.testing.assert_close(theirs, ours.detach())


def test_a_second_export_writes_the_same_files(home):
    def content() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (home / "again").iterdir()}

    assert export.main(["model=mine", "folder=again"]) == 0
    before = content()
    assert export.main(["model=mine", "folder=again"]) == 0
    assert content() == before
    assert set(before) == {"weights.pt", "architecture.py"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model=NAME is needed"),
        (["model=mime"], "no run 'mime'"),
        (["model=mine", "which=bset"], "did you mean best"),
        (["model=mine", "optim.lr=1"], "optim.lr decides nothing in an export"),
        (["model=tiny_runs:norm_free_net"], "expected a run of raymi"),
        (["model=mine", "folder=runs/mine/config.json"], "is not a folder"),
    ],
)
def test_wrong_words_are_refused_with_one_message(home, capsys, words, message):
    assert export.main(words) == 2
    assert message in capsys.readouterr().err
    assert not (home / "exports" / "tiny_runs").exists()


def test_help_names_the_written_files(capsys):
    assert export.main(["--help"]) == 0
    assert "architecture.py" in capsys.readouterr().out
