"""Journal of a run on disk: one line of JSON per event, written by rank 0 alone.

Displays and trackers read the journal; training depends on neither. A line is complete once it
ends; after a crash the same event (kind, epoch, step) can occur twice. Events that a full disk
rejects stay in memory until the next attempt.
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

from raymi.runs.events import Event, parse_event
from raymi.runs.json_files import warn_once


class Journal:
    """Appends events to a file.

    Args:
        path: of the file; its folder is created.
        enabled: False on ranks that do not write.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self._file: FileIO | None = None
        self._waiting = bytearray()
        if enabled:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._end_broken_line(path)

    def write(self, kind: str, **fields: Any) -> None:
        """Appends an event; never fails because of the disk, which `flush` checks.

        Args:
            kind: of the event.
            **fields: plain values; numbers may be infinite.
        """
        if self._file is not None:
            event = {"kind": kind, "time": time.time(), **fields}
            self._waiting += json.dumps(_plain(event), allow_nan=False).encode() + b"\n"
            with suppress(OSError):
                self.flush()

    def flush(self) -> None:
        """Writes pending events.

        Raises:
            OSError: the disk rejects them.
        """
        while self._file is not None and self._waiting:
            written = self._file.write(self._waiting)  # a disk that fills up takes a part
            del self._waiting[:written]

    def sync(self) -> None:
        """Writes pending events durably, against power loss too.

        Raises:
            OSError: the disk rejects them.
        """
        self.flush()
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _end_broken_line(self, path: Path) -> None:
        """Ends a line that a crash left incomplete; readers skip it."""
        assert self._file is not None
        if path.stat().st_size > 0:
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")


class JournalReader:
    """Reads events incrementally, of the types in `raymi.runs.events`.

    Other lines are skipped, with one warning per file; an incomplete event, as a crash leaves it,
    gets none.

    Args:
        path: of the journal; may not exist yet.
        offset: byte of the file at which to begin.
        until: byte of the file at which to end; None: no limit.
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
        except OSError:  # not yet created, or storage is away
            return []
        complete = data.rfind(b"\n") + 1
        self.offset += complete
        events = (self._event(line) for line in data[:complete].split(b"\n") if line.strip())
        return [event for event in events if event is not None]

    def _event(self, line: bytes) -> Event | None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            event, problem = None, "" if _is_incomplete(line) else f"no JSON: {error}"
        else:
            event, problem = parse_event(value, self.path)
        if problem and not self._warned:
            self._warned = True
            text = f"{self.path} is damaged, skipping lines that are no events: {problem}"
            warn_once(self.path, text)
        return event


def _is_incomplete(line: bytes) -> bool:
    """Returns whether a line starts as an event and lacks its end, as a crash leaves it."""
    return line.startswith(b'{"kind": ') and line.count(b"{") > line.count(b"}")


def _plain(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON lacks, by text that float() parses."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
