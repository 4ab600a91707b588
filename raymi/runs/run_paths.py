"""Where a run lives and what it is called."""

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
from raymi.runs.pretrained import reuse_problems
from raymi.runs.run_folder import RunFolder


def home_folder() -> Path:
    """Where results go by default: the current folder.

    A job's current folder is a copy of its working directory that Ray removes; there it is ~/raymi.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return Path.home() / "raymi"
    return Path.cwd()


def runs_folder(config: Config) -> Path:
    """The folder of all runs, absolute: `out`, or runs/ in `home_folder`."""
    return local_path(config.out or home_folder() / "runs")


def check_new_run(config: Config) -> None:
    """Refuses a name that is taken and a place that cannot be written, without making anything.

    Raises: UserError.
    """
    path = runs_folder(config) / (config.name or "")
    if config.name is not None and os.path.exists(path) and _is_taken(path):
        raise _taken(path)
    check_place(config)


def check_place(config: Config) -> None:
    """Refuses a place for a run, new or not, that cannot be written, without making anything.

    Raises: UserError.
    """
    folder = runs_folder(config)
    place = folder if config.name is None else folder / config.name
    try:
        there = next(path for path in (place, *place.parents) if path.exists())
    except OSError as error:  # a name that is too long
        raise _not_writable(folder, error.strerror) from None
    if not there.is_dir():
        raise _not_writable(folder, f"{there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise _not_writable(folder, f"no permission to write into {there}")


def new_run_folder(config: Config, recipe: str) -> RunFolder:
    """Makes the folder of a new run.

    Raises: UserError where it cannot be made or written, or where the name is taken.
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
    """Returns whether a name is taken: a folder without a configuration is not, in which a killed
    command has left no more than locks and what it knew of its run."""
    if not path.is_dir():
        return path.exists()
    left = [one.name for one in path.iterdir()]
    return not left or any(name != "run.json" and not name.startswith(".") for name in left)


def _taken(path: Path) -> UserError:
    return UserError(
        f"the run {path.name} exists already in {path.parent}: choose another name, or "
        f"continue it with resume={path.name}"
    )


def _not_writable(folder: Path, reason: str | None) -> UserError:
    return UserError(
        f"cannot write runs into {folder} ({reason}): set out=FOLDER to one that is writable"
    )


def with_found_runs(config: Config) -> tuple[Config, list[str]]:
    """The configuration with the runs that it reuses named by their folders, which mean the same
    on every worker; and a line for each that is not there or cannot be reused."""
    found: dict[str, str] = {}
    problems = []
    for key in ("pretrained", "estimators"):
        run = getattr(config.mi, key)
        if run is None:
            continue
        try:
            found[key] = str(find_run(run, config.out).path)
        except UserError as error:
            problems.append(f"mi.{key}: {error}")
    mi = config.mi.model_copy(update=found)
    config = config.model_copy(update={"mi": mi})
    return config, problems or reuse_problems(config)


def called(path: Path, home: Path) -> str:
    """What a folder is called in a command that is given in the current folder: by its name where
    it is in the home of its kind, else by its path; quoted for a shell."""
    return shlex.quote(path.name if path.parent == home else str(path))


def find_run(run: str, out: Path | None) -> RunFolder:
    """The folder of an earlier run, by its name or its path.

    Raises: UserError that lists the newest runs where there is no such one.
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
