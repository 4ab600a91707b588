"""`python -m studies.faults [kills] [bytes] [inputs] [seed=0] [kills=24] [inputs=1000]`.

Run from the root of a checkout. Writes `studies/faults/results/NAME.json` for each part and the
tables in `docs/faults.md`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from studies.faults import damage, inputs, kills, setting
from studies.faults.forked import load_commands
from studies.faults.page import write_tables
from studies.faults.record import save

RESULTS = Path(__file__).parent / "results"


def main(words: list[str]) -> int:
    """Runs the parts that are named, by default all; returns the exit code."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    parts = [word for word in words if "=" not in word] or ["kills", "bytes", "inputs"]
    seed = int(given.get("seed", "0"))
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        if "kills" in parts:
            (folder / "kills").mkdir()
            number = int(given.get("kills", "24"))
            save(kills.run_all(folder / "kills", seed, number), RESULTS / "kills.json")
        if "bytes" in parts:
            setting.make_home(folder / "home")
        if {"bytes", "inputs"} & set(parts):
            load_commands()
        if "bytes" in parts:
            save(damage.run_all(folder / "home", seed), RESULTS / "bytes.json")
        if "inputs" in parts:
            number = int(given.get("inputs", "1000"))
            save(inputs.run_all(seed, number), RESULTS / "inputs.json")
    write_tables(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
