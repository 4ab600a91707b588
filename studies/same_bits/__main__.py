"""Compares this version of raymi with an earlier one, bit for bit.

    python -m studies.same_bits REVISION [WORKERS ...]

Trains each run of `settings.py` for an epoch with both versions, in this environment, on 1, 2 and 3
gloo workers, and compares checkpoints (weights, buffers, averaged weights, optimisers) and journals
(metrics of each step and epoch). Prints a table; exits with 1 if anything differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from raymi.formatting import markdown_table
from studies.same_bits.compare import differences
from studies.same_bits.settings import SETTINGS

ROOT = Path(__file__).parents[2]


def trained(tree: Path, folder: Path, workers: int) -> dict[str, object]:
    """Returns the results of all runs by the version of raymi in a tree of files.

    Args:
        tree: has the folder raymi/.
        folder: new folder for runs and results.
        workers: number of processes.
    """
    folder.mkdir(parents=True)
    (folder / "raymi").symlink_to(tree / "raymi")
    (folder / "studies").symlink_to(ROOT / "studies")  # an earlier version has others
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "studies.same_bits.worker", str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank), str(workers)], cwd=folder, env=environment)
        for rank in range(workers)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the workers of {tree} ended with {codes}")
    return torch.load(folder / "results.pt", weights_only=False)


def main(revision: str, workers: list[int]) -> int:
    """Prints the table; returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(folder / "old"), revision], check=True)
        try:
            found: dict[str, list[str]] = {setting: [] for setting in SETTINGS}
            for number in workers:
                old = trained(folder / "old", folder / f"old-{number}", number)
                new = trained(ROOT, folder / f"new-{number}", number)
                for setting in SETTINGS:
                    different = list(differences(old[setting], new[setting]))
                    text = f"{len(different)}: {', '.join(different[:3])}" if different else "same"
                    found[setting].append(text)
        finally:
            subprocess.run([*git, "remove", "--force", str(folder / "old")], check=True)
    heading = ["run", *(f"{number} workers" for number in workers)]
    print(markdown_table([heading, *([setting, *texts] for setting, texts in found.items())]))
    return int(any(text != "same" for texts in found.values() for text in texts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], [int(text) for text in sys.argv[2:]] or [1, 2, 3]))
