"""Paths and names of runs."""

from __future__ import annotations

import os
import secrets
import shlex
import time
from pathlib import Path

from raymi.config import Config
from raymi.errors import UserError
from raymi.formatting import shown
from raymi.local_paths import local_path
from raymi.runs.pretrained import pretrained_problems
from raymi.runs.run_folder import RunFolder


def home_folder() -> Path:
    """Returns the default folder of results: the current one, or ~/raymi in a Ray job.

    Ray removes the current folder of a job, a copy of its working directory.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return Path.home() / "raymi"
    return Path.cwd()


def runs_folder(config: Config) -> Path:
    """Returns the absolute folder of all runs: `out`, or runs/ in `home_folder`."""
    return local_path(config.out or home_folder() / "runs")


def check_new_run(config: Config) -> None:
    """Refuses a taken name or a folder that cannot be written; creates nothing.

    Raises:
        UserError: the run cannot be created.
    """
    path = runs_folder(config) / (config.name or "")
    if config.name is not None and os.path.exists(path) and _is_taken(path):
        raise _taken(path)
    check_writable(config)


def check_writable(config: Config) -> None:
    """Refuses a folder of a run, new or not, that cannot be written; creates nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = runs_folder(config)
    path = folder if config.name is None else folder / config.name
    try:
        existing = next(one for one in (path, *path.parents) if one.exists())
    except OSError as error:  # a name that is too long
        raise _not_writable(folder, error.strerror) from None
    if not existing.is_dir():
        raise _not_writable(folder, f"{existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _not_writable(folder, f"no permission to write into {existing}")


def new_run_folder(config: Config, recipe: str) -> RunFolder:
    """Creates the folder of a new run.

    Raises:
        UserError: it cannot be created or written, or the name is taken.
    """
    name = config.name or f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = runs_folder(config) / name
    try:
        path.mkdir(parents=True, exist_ok=not _is_taken(path))
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise _not_writable(path.parent, error.strerror) from None
    return RunFolder(path)


def _is_taken(path: Path) -> bool:
    """Returns whether a name is taken.

    A folder with nothing but locks and `run.json`, as a killed command leaves it, is free.
    """
    if not path.is_dir():
        return path.exists()
    names = [one.name for one in path.iterdir()]
    return not names or any(name != "run.json" and not name.startswith(".") for name in names)


def _taken(path: Path) -> UserError:
    return UserError(
        f"the folder {path} exists already, and no run was begun in it: choose another name"
    )


def _not_writable(folder: Path, reason: str | None) -> UserError:
    return UserError(
        f"cannot write runs into {folder} ({reason}): set out=FOLDER to one that is writable"
    )


def resolve_pretrained(config: Config) -> tuple[Config, list[str]]:
    """Replaces the names of pretrained runs by their folders, which are the same on every worker.

    Returns:
        The configuration, and a line for each run that is missing or does not fit.
    """
    folders: dict[str, str] = {}
    problems = []
    for key in ("pretrained", "estimators"):
        run = getattr(config.mi, key)
        if run is None:
            continue
        try:
            folders[key] = str(find_run(run, config.out).path)
        except UserError as error:
            problems.append(f"mi.{key}: {error}")
    mi = config.mi.model_copy(update=folders)
    config = config.model_copy(update={"mi": mi})
    return config, problems or pretrained_problems(config)


def name_or_path(path: Path, home: Path) -> str:
    """Returns how a command names a folder, quoted for a shell.

    Args:
        path: of the folder.
        home: where commands look for names; folders elsewhere are given by path.
    """
    return shlex.quote(path.name if path.parent == home else str(path))


def find_run(run: str, out: Path | None) -> RunFolder:
    """Finds the folder of a run by its name or path.

    Raises:
        UserError: no such run exists; the message lists the newest ones.
    """
    base = local_path(out or home_folder() / "runs", "out")
    for path in (base / run, local_path(run, "a run")):
        if os.path.isfile(RunFolder(path).config):  # false for a name that is too long
            return RunFolder(path)
    configs = base.glob("*/config.json")
    newest = sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)[:5]
    known = ", ".join(path.parent.name for path in newest) or "none"
    raise UserError(
        f"no run {shown(run)} in {base}; the newest runs there: {known}. "
        "Give its name, with out=FOLDER if it is elsewhere, or its path"
    )
