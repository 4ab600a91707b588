"""A malformed input, and the words that a command needs beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from studies.faults.setting import TINY


@dataclass(frozen=True)
class Case:
    """A malformed input.

    Args:
        kind: heading under which it is counted.
        command: command that gets it.
        words: command line.
        detail: what is wrong.
        files: content by path below the current folder.
        invalid: whether it must be refused; False: it may turn out to be valid.
    """

    kind: str
    command: str
    words: tuple[str, ...]
    detail: str
    files: dict[str, bytes] = field(default_factory=dict)
    invalid: bool = True


NEEDED = {
    "train": (),
    "standalone": ("name=x",),
    "tune": ("space=smoke",),
    "evaluate": ("model=net:make", "workers=1"),
    "compare": (),
    "bench": ("parts=profile", "recipe=quickstart"),
    "probe": ("run=x",),
    "export": ("model=x",),
    "select": (),
    "report": ("x",),
}
"""Words without which a command does not look at its other input."""

SHORT = {
    "standalone": TINY,
    "evaluate": ("attacks=pgd-2", "samples=40", "checks=0"),
}
"""Words with which a command that accepts its input ends in seconds."""

NETWORK = b"""
from torch import nn
def make(num_classes, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
"""
"""Module `net`, for commands that need a classifier."""
