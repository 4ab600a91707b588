"""Files in which runs and sweeps keep how much of them MLflow has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raymi.errors import UserError


def read_state(path: Path) -> dict[str, Any]:
    """Returns the content of a `tracking.json`; empty where the file is missing.

    Raises:
        UserError: where it is damaged.
    """
    try:
        kept = json.loads(path.read_bytes()) if path.is_file() else {}
        if not isinstance(kept, dict) or not isinstance(kept.get("uri", ""), str):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{path} is damaged: remove it, MLflow is asked for what it has of {path.parent.name}"
        ) from None
    return kept
