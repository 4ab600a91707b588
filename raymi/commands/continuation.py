"""Start or continue: a command given again with the same name and settings continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymi.config import Config
from raymi.formatting import as_typed
from raymi.overrides import flatten, leaves
from raymi.runs.run_folder import RunFolder
from raymi.runs.run_paths import runs_folder

FIXED_SCALING = ("scaling.precision", "scaling.sync_batchnorm", "scaling.micro_batch")
CHANGEABLE = tuple(
    key
    for key, _ in leaves()
    if (key.startswith(("scaling.", "checkpoint.", "limit.")) and key not in FIXED_SCALING)
    or key in ("data.root", "data.download", "evaluation.block", "mi.score_memory")
    or key in ("tracking.enabled", "tracking.log_every", "tracking.machine_every")
)
"""Keys that may change when a run is continued; all others decide its results."""
_MOST = 4


def earlier_run(config: Config) -> RunFolder | None:
    """Returns the folder of a begun run with this name; None: no name is given, or it is free."""
    if config.name is None:
        return None
    folder = RunFolder(runs_folder(config) / config.name)
    return folder if folder.config.is_file() else None


def changed_keys(before: Config, now: Config) -> list[str]:
    """Returns the keys that differ between two configurations and decide results."""
    earlier, later = flatten(before.model_dump()), flatten(now.model_dump())
    return [key for key in earlier if key not in CHANGEABLE and later[key] != earlier[key]]


def changes_refused(folder: RunFolder, now: Config) -> list[str]:
    """Returns a line if a run cannot be continued with these settings.

    Raises:
        UserError: its configuration is damaged.
    """
    before = folder.read_config()
    if not (changed := changed_keys(before, now)):
        return []
    changes = difference(flatten(before.model_dump()), flatten(now.model_dump()), changed)
    return [
        f"the run {folder.name} in {folder.path.parent} was started with other settings "
        f"({changes}): give those settings to continue it, or another name"
    ]


def difference(before: Mapping[str, Any], now: Mapping[str, Any], keys: list[str]) -> str:
    """Returns the values of changed keys, as `lr=0.1, now 0.2; ...`."""
    changes = [f"{k}={as_typed(before.get(k))}, now {as_typed(now.get(k))}" for k in keys[:_MOST]]
    return "; ".join(changes + [f"and {len(keys) - _MOST} more"] * (len(keys) > _MOST))
