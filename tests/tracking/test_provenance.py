"""Provenance of runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from raymi.tracking.provenance import JOB_CONFIG, checkout, provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_checkout_has_its_commit_and_whether_it_was_changed(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    clean = {"git_commit": git(tmp_path, "rev-parse", "HEAD"), "git_dirty": "false"}
    assert checkout(tmp_path) == clean
    (tmp_path / "new.py").touch()
    assert checkout(tmp_path) == clean | {"git_dirty": "true"}


def test_a_checkout_around_an_installation_is_ignored(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "somebody else's")
    (packages := tmp_path / ".venv" / "site-packages").mkdir(parents=True)
    assert checkout(packages) == {}


@pytest.mark.parametrize(
    ("told", "dirty"), [(COMMIT, "false"), (f"{COMMIT}-dirty", "true"), (None, None)]
)
def test_a_job_has_its_submitted_commit(monkeypatch, told, dirty):
    metadata = {"job_submission_id": "raysubmit_1", "password": "s3cr3t"}
    metadata |= {} if told is None else {"git_commit": told}
    runtime_env = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"TOKEN": "s3cr3t"}}
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"metadata": metadata, "runtime_env": runtime_env}))
    facts = provenance("python -m raymi.train")
    assert (facts["job"], facts["job_code"]) == ("raysubmit_1", "gcs://_ray_pkg_1.zip")
    if told is not None:
        assert (facts["git_commit"], facts["git_dirty"]) == (COMMIT, dirty)
    assert "s3cr3t" not in json.dumps(facts)


@pytest.mark.parametrize("config", [None, "{", "[]", '{"runtime_env": {}}', '{"metadata": null}'])
def test_outside_a_job_no_job_facts_are_recorded(monkeypatch, config):
    if config is None:
        monkeypatch.delenv(JOB_CONFIG, raising=False)
    else:
        monkeypatch.setenv(JOB_CONFIG, config)
    assert "job" not in provenance("python -m raymi.train")
