"""Provenance of a run: code, versions, machine. Environment variables may hold secrets: none."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raymi import __version__
from raymi.config import Config
from raymi.formatting import threat_text
from raymi.reporting.accuracies import method_name
from raymi.runs.run_folder import RunFolder

PROVENANCE = "provenance.json"
"""Artifact of a run: command, versions, git commit, machine, numbers of parameters."""

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable in which Ray passes the configuration of a job."""


def describe_run(folder: RunFolder, recipe: str, command: str) -> None:
    """Saves facts about a run for MLflow in its folder, unless they are saved already.

    Args:
        folder: of the run.
        recipe: its name; empty: not known.
        command: that starts or resumes the run.

    Raises:
        UserError: where the file is damaged.
        StorageError: where it cannot be written.
    """
    about = folder.read_about()
    if "id" not in about:
        facts = provenance(command)
        folder.write_about({"id": uuid.uuid4().hex, "recipe": recipe, **facts, **about})


def provenance(command: str) -> dict[str, str]:
    """Returns facts that are needed to repeat a run, as text.

    Facts of git are included for a checkout, or a job that was submitted with a commit; facts of
    the job, in a job.
    """
    facts = {
        "command": command,
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for package in ("torch", "ray", "mlflow"):
        with suppress(PackageNotFoundError):  # training alone needs neither Ray nor MLflow
            facts[package] = version(package)
    return facts | checkout(Path(__file__).parents[2]) | _job()


def run_tags(config: Config, recipe: str) -> dict[str, str]:
    """Returns the tags of a run that MLflow's UI shows and filters by.

    Workers, device and doubts are added later; everything else is in `PROVENANCE`.

    Args:
        config: of the run.
        recipe: its name; empty: not known.
    """
    return {
        "raymi.recipe": recipe or "unknown",
        "raymi.method": method_name(config),
        "raymi.data": config.data.name,
        "raymi.threat": threat_text(config.attack.norm, config.attack.eps),
        "raymi.version": __version__,
    }


def source_tags(about: Mapping[str, str]) -> dict[str, str]:
    """Returns the provenance as MLflow's own tags, which are columns of its UI.

    Args:
        about: see `provenance`.
    """
    tags = {
        "mlflow.source.name": about.get("command", ""),
        "mlflow.source.type": "JOB" if JOB_CONFIG in os.environ else "LOCAL",
        "mlflow.source.git.commit": about.get("git_commit", ""),
    }
    with suppress(KeyError, OSError):  # no user name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return {key: text for key, text in tags.items() if text}


def checkout(source: Path) -> dict[str, str]:
    """Returns commit and state of the checkout that is `source`; empty if it merely contains it."""
    top = _git(source, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != source.resolve():
        return {}
    dirty = str(bool(_git(source, "status", "--porcelain"))).lower()
    return {"git_commit": _git(source, "rev-parse", "HEAD"), "git_dirty": dirty}


def _job() -> dict[str, str]:
    """Returns the id of this job, the package of its code, and the commit that was submitted.

    Nodes get the code without its git history.
    """
    try:
        config = json.loads(os.environ.get(JOB_CONFIG, "{}"))
        metadata, package = config["metadata"], config["runtime_env"].get("working_dir")
    except (ValueError, KeyError, TypeError, AttributeError):  # not in a job, or of another Ray
        return {}
    facts = {"job": metadata.get("job_submission_id"), "job_code": package}
    if commit := metadata.get("git_commit"):
        facts["git_commit"] = commit.removesuffix("-dirty")
        facts["git_dirty"] = str(commit.endswith("-dirty")).lower()
    return {key: str(text) for key, text in facts.items() if text}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
