"""Folders of runs, and the refusal of unsuitable ones."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from raymi.config import Config
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import check_new_run, find_run, new_run_folder, runs_folder


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def test_runs_are_in_the_current_folder_or_in_out(tmp_path: Path) -> None:
    assert runs_folder(Config()) == tmp_path / "runs"
    assert runs_folder(Config(out=Path("there"))) == tmp_path / "there"
    assert new_run_folder(Config(name="mine", out=Path("there")), "r").path == (
        tmp_path / "there" / "mine"
    )


def test_a_run_without_a_name_gets_a_unique_one() -> None:
    names = {new_run_folder(Config(), "quickstart").name for _ in range(5)}
    assert len(names) == 5
    assert all(re.fullmatch(r"quickstart-\d{8}-\d{6}-[0-9a-f]{4}", name) for name in names)


def test_a_new_run_leaves_nothing_but_its_empty_folder() -> None:
    assert list(new_run_folder(Config(name="mine"), "r").path.iterdir()) == []


def test_a_taken_name_is_refused() -> None:
    config = Config(name="mine")
    check_new_run(config)
    new_run_folder(config, "r")
    for refuse in (check_new_run, lambda config: new_run_folder(config, "r")):
        with pytest.raises(UserError, match=r"mine exists already.*another name"):
            refuse(config)


def test_a_name_that_a_killed_command_left_without_a_run_is_free() -> None:
    config = Config(name="mine")
    folder = new_run_folder(config, "r")
    for left in (folder.about, folder.path / ".lock", folder.path / ".config.json.77.tmp"):
        left.touch()
    check_new_run(config)
    assert new_run_folder(config, "r").path == folder.path
    folder.write_config(config)
    with pytest.raises(UserError, match=r"mine exists already.*another name"):
        check_new_run(config)


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = Config(out=tmp_path / "file" / "runs")
    with pytest.raises(UserError, match=r"cannot write.*file is not a folder.*set out=FOLDER"):
        check_new_run(config)
    with pytest.raises(UserError, match=r"cannot write.*\(Not a directory\).*set out=FOLDER"):
        new_run_folder(config, "r")


def test_a_name_that_no_file_system_accepts_is_refused() -> None:
    Path("runs").mkdir()
    with pytest.raises(ValueError, match="a name of at most 200 bytes"):
        Config(name="x" * 201)
    config = Config().model_copy(update={"name": "x" * 300})
    for refuse in (check_new_run, lambda config: new_run_folder(config, "r")):
        with pytest.raises(UserError, match="name too long"):
            refuse(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission"):
        check_new_run(Config())


def test_checks_create_nothing(tmp_path: Path) -> None:
    check_new_run(Config(name="mine", out=tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def made(name: str) -> RunFolder:
    folder = new_run_folder(Config(name=name), "r")
    folder.write_config(Config(name=name))
    return folder


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    folder = made("mine")
    for run in ("mine", "runs/mine", str(folder.path)):
        assert find_run(run, None).path == folder.path
    assert find_run("mine", Path("runs")).path == folder.path


def test_the_error_of_an_unknown_run_lists_the_newest_five() -> None:
    for i in range(6):
        folder = made(f"run{i}")
        os.utime(folder.config, (time.time() + i, time.time() + i))
    with pytest.raises(UserError) as caught:
        find_run("lost", None)
    assert "the newest runs there: run5, run4, run3, run2, run1. Give" in str(caught.value)
    with pytest.raises(UserError, match="the newest runs there: none"):
        find_run("lost", Path("empty"))
