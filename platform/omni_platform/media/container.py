"""Opening media from strangers: the container is decided once, from its first bytes, and nothing guesses again.

Left to itself FFmpeg tries some 350 demuxers on a file, and several of them (HLS, DASH, SDP, concat, image
sequences) read play lists: text that names any other file or address. Here a short list of signatures selects
one demuxer, FFmpeg gets the bytes through a file object and never a name, and a demuxer that asks for another
file or address is refused.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
import av.error
import av.logging
from av.container import InputContainer

from omni_platform.media.errors import MediaError

av.logging.set_level(av.logging.PANIC)  # what goes wrong is reported by MediaError, once

HEAD_BYTES = 512
"""How much of a file's beginning `identify` wants to see."""
CONTAINERS = "mp4, mov, mkv, webm, avi, flv, ogg, wmv, gif, MPEG program or transport stream"
"""The containers that are read, for messages."""

_BUFFER_BYTES = 1 << 18
_MAX_STREAMS = 64
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_TS_SYNC = 0x47
_TS_PACKETS = ((0, 188), (4, 192))
"""(offset of the first sync byte, packet length): plain, and with a time code before each packet (m2ts)."""


def identify(head: bytes) -> str | None:
    """The FFmpeg demuxer for a file that begins with `head` (`HEAD_BYTES` of it, or the whole file).

    None for everything that is not on the list: other containers, play lists, pictures, text.
    """
    if _is_iso(head):
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"FLV\x01") and len(head) > 4 and not head[4] & 0xFA:
        return "flv"
    if head.startswith(b"OggS\x00"):
        return "ogg"
    if head.startswith(_ASF_HEADER):
        return "asf"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"\x00\x00\x01\xba"):
        return "mpeg"
    return "mpegts" if _is_transport_stream(head) else None


def _is_iso(head: bytes) -> bool:
    """A first box of a known type whose size can be true: at least its own header, and a short `ftyp`."""
    size, kind = int.from_bytes(head[:4], "big"), head[4:8]
    if kind not in _ISO_BOXES:
        return False
    if kind == b"ftyp":
        return 16 <= size <= 4096 and size % 4 == 0
    # 0 and 1 stand for "to the end of the file" and "a 64-bit size follows".
    return size in (0, 1) or size >= 8


def _is_transport_stream(head: bytes) -> bool:
    """Three sync bytes in a row, one packet apart."""
    return any(
        len(head) > first + 2 * length and all(head[first + i * length] == _TS_SYNC for i in range(3))
        for first, length in _TS_PACKETS
    )


@contextmanager
def open_media(
    source: str | Path | bytes | BinaryIO, *, name: str, options: dict[str, str] | None = None
) -> Iterator[InputContainer]:
    """A local file, its bytes, or a seekable binary file object as an open PyAV container; `name` is for messages.

    A file object is read from its beginning and left open. `options` are further ones for the demuxer, beside
    those that confine it. Whatever an FFmpeg call inside the block raises passes through unchanged.

    Raises `MediaError`: `missing` where there is no such file, `container` for bytes that are none of
    `CONTAINERS`. What FFmpeg says against a file of a known container is an `av.error.FFmpegError`.
    """
    with _as_file(source, name) as file:
        file.seek(0)
        demuxer = identify(file.read(HEAD_BYTES))
        if demuxer is None:
            raise MediaError("container", f"{name} is in no container that is read here ({CONTAINERS})")
        file.seek(0)
        with av.open(
            _Bytes(file),
            format=demuxer,
            container_options=(options or {}) | _options(demuxer),
            io_open=_refuse_open,
            metadata_errors="ignore",
            buffer_size=_BUFFER_BYTES,
        ) as container:
            assert isinstance(container, InputContainer)
            yield container


def _options(demuxer: str) -> dict[str, str]:
    options = {
        "format_whitelist": demuxer,
        # No protocol has this name: none may be opened, `file` included.
        "protocol_whitelist": "none",
        "max_streams": str(_MAX_STREAMS),
    }
    if demuxer == "mov":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}  # tracks kept in other files
    return options


def _refuse_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a media file may not name another file")


@contextmanager
def _as_file(source: str | Path | bytes | BinaryIO, name: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if not isinstance(source, (str, Path)):
        yield source
        return
    try:
        file = open(source, "rb", buffering=0)  # noqa: SIM115 - FFmpeg has a buffer of its own
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"{name} does not exist") from None
    except OSError as error:
        raise MediaError("unreadable", f"{name} cannot be opened: {error.strerror}") from None
    with file:
        yield file


class _Bytes:
    """A file as FFmpeg's reader: no name, and impossible positions are an error code, not an exception.

    An exception in a callback would be raised at the next call into FFmpeg, whatever that call is about.
    """

    name = ""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = file.read
        self.tell = file.tell

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -22  # EINVAL, as FFmpeg writes it


def describe(error: Any) -> str:
    """FFmpeg's own words for an error, without the position, names and numbers that PyAV adds."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
