"""Commands on a run, an evaluation and a sweep with one damaged byte in a file."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from studies.faults.forked import STARTED, Ended, call
from studies.faults.inputs import last_line
from studies.faults.record import Fault, Outcome
from studies.faults.setting import EVALUATION, RUN

SECONDS = 180.0
_RUN = ("run", "runs/a")
_SWEEP = ("sweep", "sweeps/s")
_EVALUATION = ("evaluation", "evaluations")
_NAMES_DAMAGE = re.compile(r"damaged|broken|warning|cannot be read|not readable", re.IGNORECASE)
_VOLATILE = re.compile(rb'"(time|seconds|started|ended|created|duration|wall)[a-z_]*": ?[-0-9.e]+')


@dataclass(frozen=True)
class Reader:
    """A command that reads files of a kind, and the files in which it gives its results."""

    command: str
    words: tuple[str, ...]
    results: tuple[str, ...] = ()


READERS: Mapping[tuple[str, str], tuple[Reader, ...]] = {
    _RUN: (
        Reader("train", ("resume=a",)),
        Reader("standalone", (*RUN, "tracking.enabled=false")),
        Reader("evaluate", (*EVALUATION, "results=again", "--json", "e.json"), ("e.json",)),
        Reader("report", ("a", "samples=0", "out=page"), ("page/*.md",)),
        Reader("probe", ("run=a", "probe.steps=2")),
        Reader("export", ("model=a", "folder=exported"), ("exported/*",)),
    ),
    _EVALUATION: (
        Reader("evaluate", (*EVALUATION, "--json", "e.json"), ("e.json",)),
        Reader("report", ("a", "samples=0", "out=page"), ("page/*.md",)),
    ),
    _SWEEP: (
        Reader("tune", ("resume=s",)),
        Reader("report", ("s", "samples=0", "out=page"), ("page/*.md",)),
    ),
}
"""Commands by the files that they read."""


def damages(home: Path, rng: random.Random) -> Iterator[tuple[str, str, int, int, Reader]]:
    """Chooses a byte in each file, and a bit of it; every reader of the file gets the same.

    Yields:
        Kind, file, position, mask and reader.
    """
    for (kind, below), readers in READERS.items():
        for file in sorted(path for path in (home / below).rglob("*") if path.is_file()):
            if not (size := file.stat().st_size):
                continue
            position, mask = rng.randrange(size), 1 << rng.randrange(8)
            for reader in readers:
                yield kind, str(file.relative_to(home)), position, mask, reader


def run_all(home: Path, seed: int) -> list[Fault]:
    """Damages one byte of every file in turn.

    Args:
        home: folder that `make_home` made; it stays as it is.
        seed: of the bytes that are chosen.
    """
    usual: dict[Reader, tuple[Ended, str]] = {}
    for reader in {reader for readers in READERS.values() for reader in readers}:
        usual[reader] = _read(home, reader)
        ended = usual[reader][0]
        assert ended.code in (0, STARTED), f"{reader.command} on files without damage: {ended}"
    faults = []
    for kind, file, position, mask, reader in damages(home, random.Random(seed)):
        ended, answer = _read(home, reader, file, position, mask)
        detail = f"{file}, byte {position}, mask {mask}"
        outcome = _outcome(ended, answer, usual[reader][1])
        faults.append(Fault(f"byte of a {kind}", reader.command, detail, outcome, last_line(ended)))
        print(f"{detail}, {reader.command}: {outcome} ({last_line(ended)})", flush=True)
    return faults


def _read(
    home: Path, reader: Reader, file: str = "", position: int = 0, mask: int = 0
) -> tuple[Ended, str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "home"
        shutil.copytree(home, folder)
        if file:
            content = bytearray((folder / file).read_bytes())
            content[position] ^= mask
            (folder / file).write_bytes(content)
        ended = call(folder, reader.command, reader.words, SECONDS)
        files = [path for pattern in reader.results for path in sorted(folder.glob(pattern))]
        results = [_VOLATILE.sub(b"", path.read_bytes()) for path in files if path.is_file()]
        digests = [hashlib.sha256(result.replace(name.encode(), b"")) for result in results]
    return ended, "\n".join([ended.answer, *(digest.hexdigest() for digest in digests)])


def _outcome(ended: Ended, answer: str, usual: str) -> Outcome:
    if ended.has_traceback:
        return "traceback"
    if ended.code is None:
        return "hang"
    if ended.code not in (0, STARTED):
        return "refused" if ended.code in (1, 2) and "error: " in ended.err else "lost"
    if answer == usual:
        return "equal"
    named = _NAMES_DAMAGE.search(ended.out + ended.err)
    return "reported" if named else "silent"
