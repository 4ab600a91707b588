"""Journal of a run on disk: one line of JSON for each event, written by rank 0 alone.

Displays and trackers read the journal; training knows of neither. A line is complete once it ends;
after a crash and a replay the same event (kind, epoch, step) can occur twice. Events that a full
disk refuses wait in memory for the next attempt.
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

from raymi.runs.events import Event, event_of
from raymi.runs.json_files import warn_once


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
    """Reads events as they come, of the types in `raymi.runs.events`.

    Lines that are no such events are passed over, with one warning for each file unless a crash
    left half of an event.

    Args:
        path: of the journal; it may be made later.
        offset: bytes of the file before which it reads nothing.
        until: bytes of the file after which it reads nothing.
    """

    def __init__(self, path: Path, offset: int = 0, until: int | None = None) -> None:
        self.path = path
        self.offset = offset
        self._until = until
        self._warned = False

    def new_events(self) -> list[Event]:
        """Returns complete events since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self._until is None else self._until - self.offset)
        except OSError:  # not there yet, or its storage is away
            return []
        complete = data.rfind(b"\n") + 1
        self.offset += complete
        found = (self._event(line) for line in data[:complete].split(b"\n") if line.strip())
        return [event for event in found if event is not None]

    def _event(self, line: bytes) -> Event | None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            event, problem = None, "" if _is_half_an_event(line) else f"no JSON: {error}"
        else:
            event, problem = event_of(value, self.path)
        if problem and not self._warned:
            self._warned = True
            text = f"{self.path} is damaged, lines that are no events are passed over: {problem}"
            warn_once(self.path, text)
        return event


def _is_half_an_event(line: bytes) -> bool:
    """Returns whether a line begins as an event does and lacks its end, as a crash leaves it."""
    return line.startswith(b'{"kind": ') and line.count(b"{") > line.count(b"}")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text that float() understands."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
