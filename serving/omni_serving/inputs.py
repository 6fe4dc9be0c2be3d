"""The clip of a request: found, checked against the limits, decoded.

A clip is a file under an allowed folder (`file://` or a path), a base64 data URI, or, from hosts that the
configuration names, http(s). Who can write to an allowed folder is trusted; who sends requests is not.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from omni_platform.media.decode import DecodedClip, decode_clip
from omni_platform.media.probe import MediaError
from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError
from omni_serving.remote import fetch

_PARAM = "messages"
_HEAD_BYTES = 16
_SIGNATURES = (
    (4, b"ftyp"),  # mp4, mov
    (4, b"moov"),  # old mov
    (4, b"mdat"),
    (4, b"wide"),
    (0, b"\x1a\x45\xdf\xa3"),  # mkv, webm
    (8, b"AVI "),
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"\x00\x00\x01\xba"),  # MPEG program stream
    (0, b"\x47\x40"),  # MPEG transport stream
)
"""Where a container says what it is: (offset, bytes)."""


def fetch_clip(url: Path | str, config: ServeConfig, *, fps: float, max_frames: int) -> DecodedClip:
    """Find and decode the clip at `url`, sampled at `fps` and at most `max_frames` frames.

    Raises `RequestError`: 413 for a clip that is too large or too long, 400 for everything else.
    """
    source = url if isinstance(url, Path) else _find(url.strip(), config)
    _check_container(source)
    try:
        return decode_clip(source, fps=fps, max_frames=max_frames, max_duration_s=config.max_duration_s)
    except MediaError as error:
        raise _unreadable(error) from None


def _find(url: str, config: ServeConfig) -> Path | bytes:
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme == "data":
        return _from_data_uri(url, config.max_video_bytes)
    if scheme in ("http", "https"):
        return fetch(url, config)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise _refused(f"file URLs name no host, got {parts.netloc!r}; write file:///path", "bad_url")
        return _from_file(unquote(parts.path), config)
    if "://" in url:
        raise _refused(f"{scheme}:// is not taken here; send a file or a data URI", "bad_url")
    return _from_file(url, config)


def _from_data_uri(uri: str, max_bytes: int) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _refused("a data URI must have the form data:video/mp4;base64,...", "bad_data_uri")
    # Four characters hold three bytes: the size is known before anything is decoded.
    if len(body) // 4 * 3 - 2 > max_bytes:
        raise _too_large(len(body) // 4 * 3, max_bytes)
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"the data URI is not valid base64: {error}", "bad_base64") from None
    if not data:
        raise _refused("the data URI holds no bytes; encode the file again", "bad_data_uri")
    return data


def _from_file(text: str, config: ServeConfig) -> Path:
    """The real path of a file under an allowed folder; links are followed before the check.

    A file outside is refused with the same words whether it exists or not.
    """
    if not config.allowed_media_dirs:
        raise _refused(
            "this server opens no files; send the clip as data:video/mp4;base64,... "
            "or let the operator set allowed_media_dirs",
            "media_not_allowed",
        )
    path = _allowed(text, [Path(os.path.realpath(folder)) for folder in config.allowed_media_dirs])
    if path is None:
        raise _refused(
            f"{text[:200]!r} does not lie in a folder that this server may open (allowed_media_dirs of its "
            "configuration); move the clip there, or send it as a data URI",
            "media_not_allowed",
        )
    try:
        status = path.stat()
    except OSError as error:
        raise _refused(f"{text[:200]!r} cannot be opened: {error.strerror}", "media_missing") from None
    # A pipe or a device would be read for ever.
    if not stat.S_ISREG(status.st_mode):
        raise _refused(f"{text[:200]!r} is not a file", "media_missing")
    if status.st_size > config.max_video_bytes:
        raise _too_large(status.st_size, config.max_video_bytes)
    return path


def _allowed(text: str, folders: list[Path]) -> Path | None:
    """`text` as a real path within one of the folders; a relative path is tried in each of them."""
    if not text or "\0" in text:
        return None
    candidates = [text] if os.path.isabs(text) else [os.path.join(folder, text) for folder in folders]
    real = [Path(os.path.realpath(candidate)) for candidate in candidates]
    inside = [path for path in real if any(path.is_relative_to(folder) for folder in folders)]
    return next((path for path in inside if os.path.lexists(path)), inside[0] if inside else None)


def _check_container(source: Path | bytes) -> None:
    """Only real containers reach the decoder.

    Codec libraries also read play lists, and a play list can name any file or address the server can reach.
    """
    head = source[:_HEAD_BYTES] if isinstance(source, bytes) else _read_head(source)
    if any(head[offset : offset + len(sign)] == sign for offset, sign in _SIGNATURES):
        return
    raise _refused(
        "the video is not in a container that is read here (mp4, mov, mkv, webm, avi, flv, MPEG); "
        "check that the file plays, and send an mp4",
        "media_container",
    )


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise _refused(f"{path.name!r} cannot be opened: {error.strerror}", "media_missing") from None


def _unreadable(error: MediaError) -> RequestError:
    if error.reason == "too_long":
        message = f"{error.detail}; cut out the part that the question is about"
        return RequestError(message, code="media_too_long", status=413, param=_PARAM)
    return _refused(
        f"the video cannot be used ({error.reason}): {error.detail}; check that the file plays, and "
        "encode it again as mp4 (H.264, AAC)",
        f"media_{error.reason}",
    )


def _too_large(num_bytes: int, max_bytes: int) -> RequestError:
    return RequestError(
        f"the clip has {num_bytes} bytes (limit {max_bytes}); compress it or cut out a part",
        code="media_too_large",
        status=413,
        param=_PARAM,
    )


def _refused(message: str, code: str) -> RequestError:
    return RequestError(message, code=code, param=_PARAM)
