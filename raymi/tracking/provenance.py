"""Where a result comes from: code, versions, machine. No environment variables: they hold
secrets."""

from __future__ import annotations

import platform
import subprocess
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


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
