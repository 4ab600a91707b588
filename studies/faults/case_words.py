"""Malformed command lines."""

from __future__ import annotations

import random

from raymi.overrides import leaves
from studies.faults.case import NEEDED, NETWORK, Case
from studies.faults.forked import COMMANDS
from studies.faults.setting import TINY

_NO_NUMBER = (
    "x",
    "x" * 5000,
    "",
    " ",
    "1e",
    "--1",
    "1,2",
    "[1]",
    "{}",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1_0",
    "0x10",
    "8//255",
    "8/0",
    "\udcff\udcfe",
    "\x1b[31m1",
    "[/]",
    "\u0661\u0662x",
    "None!",
)
_HUGE = ("1" + "0" * 23, "9" * 400, "-" + "9" * 40)
_OWN = {
    "evaluate": ("samples", "workers", "checks", "split", "suite", "attacks", "json", "keep"),
    "tune": ("seeds", "tune.trials", "tune.scheduler", "tune.search", "space"),
    "compare": ("seeds", "parallel", "arms"),
    "bench": ("rounds", "runs", "loop_steps", "threads", "parts", "workers"),
    "select": ("metric", "threat", "doubtful", "data", "alias"),
    "report": ("samples", "steps", "eps"),
    "probe": ("model", "out"),
    "export": ("which",),
}
_WHOLE = {
    "samples",
    "workers",
    "checks",
    "seeds",
    "tune.trials",
    "parallel",
    "rounds",
    "runs",
    "loop_steps",
    "threads",
    "steps",
}


def bad_value(rng: random.Random) -> Case:
    """A value that its key does not take."""
    command = rng.choice(COMMANDS)
    keys = dict(leaves())
    if command in _OWN and rng.random() < 0.5:
        key = rng.choice(_OWN[command])
        value = rng.choice((*_NO_NUMBER, *_HUGE))
        valid = {("bench", "1_0"), ("bench", "")}  # 10, and the default of threads
        invalid = key in _WHOLE and (command, value) not in valid
    else:
        key, number = rng.choice([(k, _is_number(f.annotation)) for k, f in keys.items()])
        value = rng.choice((*_NO_NUMBER, *_HUGE))
        invalid = number and value not in ("inf", "1_0", " ", _HUGE[0])  # 1e23 is a float
    words = (*NEEDED[command], f"{key}={value}")
    if command in ("standalone", "evaluate") and not invalid:
        given = {word.partition("=")[0] for word in words}
        words += tuple(word for word in TINY if word.partition("=")[0] not in given)
    detail = f"{key}={value[:40]!r}"
    return Case("value", command, words, detail, {"net.py": NETWORK}, invalid)


def _is_number(annotation: object) -> bool:
    return annotation in (int, float)


def bad_word(rng: random.Random) -> Case:
    """A word that is no option."""
    command = rng.choice(COMMANDS)
    key, _ = rng.choice(list(leaves()))
    text = rng.choice(
        (
            f"{key[:-1]}=1",
            f"{key}q=1",
            f"={key}",
            f"-{key}=1",
            "==",
            "=",
            "\udcff=1",
            "\x00=1",
            "optim.=1",
            ".epochs=1",
            "a.b.c.d=1",
            "[red]x[/red]=1",
            "x" * 5000 + "=1",
            "🦙=1",
        )
    )
    words = (*NEEDED[command], text)
    return Case("word", command, words, repr(text[:60]), {"net.py": NETWORK})
