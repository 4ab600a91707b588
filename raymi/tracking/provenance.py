"""Where a result comes from: code, versions, machine. No environment variables: they hold
secrets."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from raymi import __version__


def provenance(command: str) -> dict[str, str]:
    """Facts that a reader needs to repeat a run, as text; git only where the code is a checkout."""
    facts = {
        "command": command,
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: version(package) for package in ("torch", "ray", "mlflow")},
    }
    source = Path(__file__).parents[2]
    commit = _git(source, "rev-parse", "HEAD")
    if commit:
        facts["git_commit"] = commit
        facts["git_dirty"] = str(bool(_git(source, "status", "--porcelain"))).lower()
    return facts


def source_tags(about: Mapping[str, str]) -> dict[str, str]:
    """What the columns of MLflow's UI show of where a run comes from.

    Args: about, see `provenance`.
    """
    tags = {
        "mlflow.source.name": about.get("command", ""),
        "mlflow.source.type": "JOB" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else "LOCAL",
        "mlflow.source.git.commit": about.get("git_commit", ""),
    }
    with suppress(KeyError, OSError):  # of a user without a name, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return {key: text for key, text in tags.items() if text}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
