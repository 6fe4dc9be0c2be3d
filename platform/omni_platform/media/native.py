"""The one place where errors of native code become `MediaError`.

FFmpeg, PyAV, decord and numpy raise a dozen types for files that nobody foresaw. All of them belong to the clip.
Their texts may hold source lines, pointers and paths of this machine: only FFmpeg's own short words are passed on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av.error
from av.container import InputContainer

from omni_platform.media.container import describe
from omni_platform.media.errors import MediaError


@contextmanager
def native_errors(name: str, doing: str) -> Iterator[None]:
    """Turn whatever a block of native calls raises into a `MediaError` about `name` (`doing`: "decoding the sound").

    `too_large` where memory ran out, `undecodable` otherwise. `MediaError` passes through.
    """
    try:
        yield
    except MediaError:
        raise
    except MemoryError:  # of Python, numpy and FFmpeg alike
        raise MediaError("too_large", f"{name}: {doing} needs more memory than there is") from None
    except av.error.FFmpegError as error:
        raise MediaError("undecodable", f"{name}: {doing} failed: {describe(error)}") from None
    except Exception as error:
        raise MediaError("undecodable", f"{name}: {doing} failed ({type(error).__name__})") from None


def read_packets(container: InputContainer, *streams: Any) -> Iterator[Any]:
    """The packets of these streams in the order of the file, then an empty one of each, which empties its decoder."""
    try:
        yield from container.demux(streams)
    except IndexError:
        # Streams that FFmpeg finds while it reads are unknown to PyAV, whose last loop trips over them after ours.
        return
