"""A run's folder gives back what was kept in it."""

from __future__ import annotations

import threading
import time

import pytest
from tiny_runs import tiny_config

from raymi.errors import StorageError, UserError
from raymi.runs.run_folder import RunFolder


def test_the_resolved_configuration_is_read_as_written(tmp_path):
    for settings in ({}, {"mi.form": "paper"}, {"mi.weight": 0, "loss.base": "mart"}):
        config = tiny_config(settings)
        RunFolder(tmp_path).write_config(config)
        assert RunFolder(tmp_path).read_config() == config


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run of raymi: it has no config\.json"):
        RunFolder(tmp_path).read_config()


def test_a_configuration_of_another_version_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text('{"attack": {"random_start": true}}')
    with pytest.raises(UserError, match="damaged, or of another version of raymi: start a new run"):
        folder.read_config()


def test_only_one_command_at_a_time_may_work_in_a_run(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.lock(), pytest.raises(UserError, match="is running in another process"):
        with RunFolder(tmp_path).lock():
            pass
    with folder.lock():
        pass


def test_a_worker_waits_for_one_that_lost_its_driver(tmp_path):
    folder, order = RunFolder(tmp_path), []
    held = threading.Event()

    def orphan():
        with folder.lock("lock", wait=0):
            held.set()
            time.sleep(0.3)
            order.append("orphan")

    thread = threading.Thread(target=orphan)
    thread.start()
    held.wait()
    with RunFolder(tmp_path).lock("lock", wait=300):
        order.append("follower")
    thread.join()
    assert order == ["orphan", "follower"]


def test_an_obstacle_to_saving_settings_is_named(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file")
    with pytest.raises(StorageError, match=r"cannot write .*config\.json \(File exists"):
        folder.write_config(tiny_config())


def test_facts_about_a_run_are_read_as_written(tmp_path):
    folder = RunFolder(tmp_path / "my-run")
    assert folder.name == "my-run"
    assert folder.read_about() == {}
    folder.path.mkdir()
    folder.write_about({"id": "7", "recipe": None})
    assert folder.read_about() == {"id": "7", "recipe": None}
