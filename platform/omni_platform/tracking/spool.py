"""The spool of a run: records for the tracker as lines in files, kept until the tracker has them.

Every process writes a file of its own and holds a lock on it while it lives; beside each file lies how much of it was
sent. A line is in the file as soon as it is written, so a killed process loses none; a line that was cut off by a full
disk or a power cut is not counted.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".jsonl"

Record = dict[str, Any]


class SpoolWriter:
    """Appends records to a new file of a spool. Never raises once it exists: see `lost`."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        """Makes the file, with `header` as its first line. OSError where the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        # Names sort by time, which is the order in which files of several attempts are sent.
        name = f"{time.time_ns():020d}-{socket.gethostname()}-{os.getpid()}{SUFFIX}"
        self.file = SpoolFile(folder / name)
        self._descriptor = os.open(self.file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        _lock(self._descriptor)
        self._guard, self._size, self._open = threading.Lock(), 0, True
        self.lost = 0
        """Records that could not be written."""
        self.append(header)

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write a record; False where the disk does not take it."""
        line = json.dumps(record).encode() + b"\n"
        with self._guard:
            try:
                if not self._open:
                    raise OSError("the spool is closed")
                if os.write(self._descriptor, line) != len(line):
                    raise OSError("the disk is full")
                self._size += len(line)
                return True
            except OSError:
                self.lost += 1
                if self._open:
                    # Half a line would spoil the next one.
                    os.ftruncate(self._descriptor, self._size)
                return False

    def sync(self) -> None:
        """Have the operating system write the file to its disk; may wait for the disk."""
        with self._guard:
            descriptor = os.dup(self._descriptor) if self._open else None
        if descriptor is not None:
            try:
                os.fsync(descriptor)
            except OSError:
                pass
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of the file: whoever finds it may now send what is left in it."""
        with self._guard:
            if self._open:
                os.close(self._descriptor)
            self._open = False


@dataclass(frozen=True)
class SpoolFile:
    """One process's file in a spool."""

    path: Path

    @property
    def marker(self) -> Path:
        """The file that says how many bytes were sent."""
        return self.path.with_suffix(".sent")

    @property
    def sent(self) -> int:
        """How many bytes of the file the tracker has."""
        try:
            return int(self.marker.read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0

    def mark_sent(self, offset: int) -> None:
        """Note that the tracker has everything before `offset`."""
        if offset <= self.sent:
            return
        aside = self.path.with_suffix(f".sent-{os.getpid()}-{threading.get_ident()}")
        aside.write_text(str(offset))
        aside.replace(self.marker)

    def header(self) -> Record | None:
        """The first record; None where the file has no whole line."""
        with self.path.open("rb") as file:
            line = file.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def records(self, start: int = 0) -> Iterator[tuple[Record, int]]:
        """Whole records from a byte on, each with the byte at which it ends."""
        end = start
        with self.path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield json.loads(line), end

    def unsent(self) -> int:
        """Whole records that the tracker does not have, the header not counted."""
        return sum(record["kind"] != "run" for record, _ in self.records(self.sent))

    def refuse(self, record: Record, reason: str) -> None:
        """Keep a record that the tracker will never take, with its reason, beside the file."""
        with self.path.with_suffix(".refused").open("a") as file:
            file.write(json.dumps({"reason": reason, "record": record}) + "\n")

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the file's lock within the block; False where the process that writes it is alive."""
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            yield _lock(descriptor)
        finally:
            os.close(descriptor)


def files_of(folder: Path) -> list[SpoolFile]:
    """The files of a spool, oldest first."""
    return [SpoolFile(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def read_history(folder: Path) -> dict[str, dict[int, float]]:
    """Metric -> value by step from all files of a spool; of a step that was run twice, the later value."""
    points: dict[str, dict[int, tuple[int, float]]] = {}
    for file in files_of(folder):
        for record, _ in file.records():
            if record["kind"] != "metrics":
                continue
            for name, value in record["values"].items():
                known = points.setdefault(name, {})
                step, at_ms = record["step"], record["ms"]
                if step not in known or known[step][0] <= at_ms:
                    known[step] = (at_ms, value)
    return {name: {step: known[step][1] for step in sorted(known)} for name, known in points.items()}


def _lock(descriptor: int) -> bool:
    """Take the lock of an open file; False where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks; to send a record twice changes nothing
        return True
    return True
