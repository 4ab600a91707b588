"""Where a run lives and what it is called."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from raymi.config import Config
from raymi.engine.run_folder import RunFolder
from raymi.errors import UserError
from raymi.orchestration.ray_session import in_ray_job


def home_folder() -> Path:
    """Where results go by default: the current folder.

    A job's current folder is a copy of its working directory that Ray removes; there it is ~/raymi.
    """
    if in_ray_job() and "runtime_resources" in Path.cwd().parts:
        return Path.home() / "raymi"
    return Path.cwd()


def runs_folder(config: Config) -> Path:
    """The folder of all runs, absolute: `out`, or runs/ in `home_folder`."""
    return (config.out or home_folder() / "runs").expanduser().absolute()


def new_run_folder(config: Config, recipe: str) -> RunFolder:
    """Makes the folder of a new run.

    Raises: UserError where it cannot be made or written, or where the name is taken.
    """
    name = config.name or f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    path = runs_folder(config) / name
    if path.exists():
        raise UserError(
            f"the run {name} exists already in {path.parent}: choose another name, or "
            f"continue it with resume={name}"
        )
    try:
        path.mkdir(parents=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write into {path.parent} ({error.strerror}): "
            "set out=FOLDER to one that is writable"
        ) from None
    return RunFolder(path)


def find_run(run: str, out: Path | None) -> RunFolder:
    """The folder of an earlier run, by its name or its path.

    Raises: UserError that lists the newest runs where there is no such one.
    """
    base = (out or home_folder() / "runs").expanduser().absolute()
    for path in (base / run, Path(run).expanduser().absolute()):
        if RunFolder(path).config.is_file():
            return RunFolder(path)
    configs = base.glob("*/config.json")
    newest = sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)[:5]
    known = ", ".join(path.parent.name for path in newest) or "none"
    raise UserError(f"no run {run!r} in {base}; the newest runs there: {known}")
