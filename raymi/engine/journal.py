"""The run's own record on disk: one line of JSON for each event, written by rank 0 alone.

Whoever shows or tracks a run reads the journal; training knows of neither. A line is complete once
it ends; after a crash and a replay the same event (kind, epoch, step) can be there twice. What a
full disk does not take waits in memory for the next attempt.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any


class Journal:
    """Appends events to a file.

    Args: path; enabled, false on the ranks that only listen.
    Raises: OSError where it cannot be written.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self._file: FileIO | None = None
        self._waiting = bytearray()
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._end_broken_line(path)

    def write(self, kind: str, **fields: Any) -> None:
        """Adds one event: its kind, the time, and fields of plain values (numbers may be
        infinite). Never fails for the disk: `flush` says whether it took everything."""
        if self._file is not None:
            event = {"kind": kind, "time": time.time(), **fields}
            self._waiting += json.dumps(_plain(event), allow_nan=False).encode() + b"\n"
            with suppress(OSError):
                self.flush()

    def flush(self) -> None:
        """Writes what the disk has not taken so far.

        Raises: OSError where it still does not.
        """
        while self._file is not None and self._waiting:
            written = self._file.write(self._waiting)  # a disk that fills up takes a part of it
            del self._waiting[:written]

    def sync(self) -> None:
        """Writes everything so that it is there also after a power cut.

        Raises: OSError where the disk does not take it.
        """
        self.flush()
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _end_broken_line(self, path: Path) -> None:
        """A crash may have left half a line: it is closed off, and readers pass over it."""
        assert self._file is not None
        if path.stat().st_size > 0:
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


class JournalReader:
    """Reads events as they come; remembers how far it is.

    Args: offset and until, bytes of the file before and after which it reads nothing.
    """

    def __init__(self, path: Path, offset: int = 0, until: int | None = None) -> None:
        self.path = path
        self.offset = offset
        self._until = until

    def new_events(self) -> list[dict[str, Any]]:
        """Complete events since the last call; half-written lines of a crash are passed over."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self._until is None else self._until - self.offset)
        except OSError:  # not there yet, or its storage is away
            return []
        complete = data.rfind(b"\n") + 1
        self.offset += complete
        events = []
        for line in data[:complete].splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "kind" in event:
                    events.append(event)
        return events


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text that float() understands."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
