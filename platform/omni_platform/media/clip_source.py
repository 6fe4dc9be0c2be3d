"""A clip as an open file, wherever it lies, within a time.

This is the side of decoding that can reach files and stores, and that never looks into a file.
"""

from __future__ import annotations

import os
import queue
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from omni_platform import storage
from omni_platform.media.errors import MediaError

_POLL_S = 0.05


@contextmanager
def opened(
    source: str | Path | bytes | BinaryIO, name: str, until_s: float, deadline_s: float, stopped: Callable[[], bool]
) -> Iterator[BinaryIO]:
    """A clip as an open file with a descriptor.

    Files are opened and remote ones copied in a thread that is left behind when it is late: MediaError `deadline`,
    `cancelled`, `missing` or `unreadable`.
    """
    if isinstance(source, bytes):
        with tempfile.TemporaryFile(prefix="clip-") as file:
            file.write(source)
            file.flush()
            yield file
    elif isinstance(source, (str, Path)):
        outcome: queue.SimpleQueue[BinaryIO | MediaError] = queue.SimpleQueue()
        threading.Thread(target=lambda: outcome.put(_try_to_open(source, name)), daemon=True).start()
        with _wait_for(outcome, name, until_s, deadline_s, stopped) as file:
            yield file
    else:
        yield source


def name_of(source: str | Path | bytes | BinaryIO) -> str:
    """What messages call a clip that has no other name: its file's own, without folders."""
    if isinstance(source, bytes):
        return f"the given media ({len(source)} bytes)"
    return str(source).rstrip("/").rpartition("/")[2] if isinstance(source, (str, Path)) else "the given media"


def _wait_for(
    outcome: queue.SimpleQueue[BinaryIO | MediaError],
    name: str,
    until_s: float,
    deadline_s: float,
    stopped: Callable[[], bool],
) -> BinaryIO:
    while True:
        try:
            found = outcome.get(timeout=min(_POLL_S, max(0.001, until_s - time.monotonic())))
        except queue.Empty:
            if stopped():
                raise MediaError("cancelled", f"{name} is no longer wanted") from None
            if time.monotonic() > until_s:
                raise MediaError("deadline", f"{name} was not there within {deadline_s:g} s") from None
            continue
        if isinstance(found, MediaError):
            raise found
        return found


def _try_to_open(source: str | Path, name: str) -> BinaryIO | MediaError:
    try:
        # A copy of a remote file loses its name here already, and its space when the descriptor is closed.
        with storage.local_copy(source) as path:
            # Not blocking: a pipe without a writer would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            file = os.fdopen(descriptor, "rb", buffering=0)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return file
            file.close()
            return MediaError("unreadable", f"{name} is not a file")
    except (FileNotFoundError, NotADirectoryError):
        return MediaError("missing", f"{name} does not exist")
    except Exception as error:  # every object store has its own
        return MediaError("unreadable", f"{name} cannot be read: {type(error).__name__}: {error}")
