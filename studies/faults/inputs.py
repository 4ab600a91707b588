"""Malformed inputs, given to the commands one after the other."""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from studies.faults.case import Case
from studies.faults.case_data import bad_image_file, bad_labels, bad_pixels
from studies.faults.case_models import bad_network, bad_space, bad_weights
from studies.faults.case_words import bad_value, bad_word
from studies.faults.forked import STARTED, Ended, call
from studies.faults.record import Fault, Outcome

SECONDS = 120.0  # for an input that is valid, and trains
_MAKERS: tuple[Callable[[random.Random], Case], ...] = (
    bad_value,
    bad_value,
    bad_word,
    bad_labels,
    bad_pixels,
    bad_image_file,
    bad_weights,
    bad_network,
    bad_space,
)


def try_case(case: Case) -> Fault:
    """Gives a malformed input to its command, in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in case.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        ended = call(folder, case.command, case.words, SECONDS)
    return Fault(case.kind, case.command, case.detail, outcome(case, ended), last_line(ended))


def outcome(case: Case, ended: Ended) -> Outcome:
    """Classifies the end of a command that got a malformed input."""
    if ended.has_traceback:
        return "traceback"
    if ended.code is None:
        return "hang"
    if ended.code in (0, STARTED):
        return "silent" if case.invalid else "accepted"
    return "refused" if ended.code in (1, 2) and "error: " in ended.err else "lost"


def last_line(ended: Ended) -> str:
    """Returns the first line of the error, or the last one of the output, cut short."""
    lines = (ended.err.strip() or ended.out.strip()).splitlines() or [""]
    first = next((line for line in lines if line.startswith("error: ")), lines[-1])
    return re.sub(r"/tmp/\S*/", "", first)[:200]


def cases(rng: random.Random, number: int) -> Iterator[Case]:
    """Draws malformed inputs, all kinds in turn.

    Args:
        rng: source of all choices.
        number: cases in all.
    """
    for index in range(number):
        yield _MAKERS[index % len(_MAKERS)](rng)


def run_all(seed: int, number: int) -> list[Fault]:
    """Tries malformed inputs one after the other; prints each outcome."""
    faults = []
    for index, case in enumerate(cases(random.Random(seed), number)):
        faults.append(fault := try_case(case))
        parts = (fault.kind, fault.command, fault.detail, f"{fault.outcome} ({fault.message})")
        print(f"{index}: {', '.join(parts)}", flush=True)
    return faults
