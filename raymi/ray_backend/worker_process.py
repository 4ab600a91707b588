"""Set-up of a worker process: import path of the user's modules, warnings, resources."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import raymi

_PACKAGE = Path(raymi.__file__).parent


def add_import_path(folder: str) -> None:
    """Makes the user's own modules in a folder importable."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def forward_warnings(on_warning: Callable[[str], None]) -> None:
    """Passes raymi's own warnings to a callback, and drops all others."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if Path(filename).is_relative_to(_PACKAGE):
            on_warning(str(message))

    warnings.showwarning = show


def worker_resources(cpus: int, use_gpu: bool) -> dict[str, float]:
    """Returns Ray's resources of a worker."""
    return {"CPU": cpus, **({"GPU": 1} if use_gpu else {})}
