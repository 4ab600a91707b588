"""Start or continue: a repeated command continues, and names what differs from the first one."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.commands.train.options import requested
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder

WORDS = ("recipe=quickstart-at", "name=mine", "use_gpu=false", "scaling.workers=1")


@pytest.fixture(autouse=True)
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Folder of a begun run with the settings of `WORDS`."""
    monkeypatch.chdir(tmp_path)
    request = requested(WORDS)
    assert request.folder is None
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    folder.write_config(request.config)
    return folder


def test_the_same_command_continues_the_run(begun: RunFolder) -> None:
    request = requested(WORDS)
    assert request.folder is not None
    assert request.folder.path == begun.path
    assert request.config == begun.read_config()


def test_settings_that_do_not_decide_results_may_change(begun: RunFolder) -> None:
    request = requested([*WORDS, "checkpoint.keep=5", "limit.hours=2"])
    assert request.folder is not None
    assert request.config.checkpoint.keep == 5


def test_other_settings_are_refused_with_the_difference() -> None:
    message = r"the run mine in .* other settings \(seed=0, now 3; optim.lr=0.1, now 0.2\)"
    with pytest.raises(UserError, match=message):
        requested([*WORDS, "lr=0.2", "seed=3"])
    with pytest.raises(UserError, match="and 1 more"):
        requested([*WORDS, "lr=0.2", "seed=3", "epochs=2", "eps=0.2", "optim.batch_size=32"])


def test_a_command_without_a_name_is_a_new_run() -> None:
    assert requested(("recipe=quickstart-at", "use_gpu=false", "scaling.workers=1")).folder is None


def test_a_damaged_run_is_refused_in_a_message(begun: RunFolder) -> None:
    begun.config.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        requested(WORDS)
