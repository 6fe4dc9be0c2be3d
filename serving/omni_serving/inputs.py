"""Which clip a request means: a file under an allowed folder, or an address at an allowed host.

Who can write to an allowed folder is trusted; who sends requests is not. What a clip holds is looked at by the
decoder process alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from omni_platform.media.errors import MediaError
from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError

_PARAM = "messages"


def is_http(url: str) -> bool:
    """Whether a clip has to be fetched."""
    return url.partition(":")[0].lower() in ("http", "https")


def open_file(url: str, config: ServeConfig) -> BinaryIO:
    """The file that a path or a `file://` URL means, opened.

    Raises `RequestError`: 413 for a file that is too large, 400 for everything else.
    """
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme == "file":
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise _refused(f"the clip's address is not a URL: {error}", "bad_url") from None
        if parts.netloc not in ("", "localhost"):
            raise _refused(f"file URLs name no host, got {parts.netloc[:200]!r}; write file:///path", "bad_url")
        return _from_file(unquote(parts.path), config)
    if "://" in url:
        raise _refused(f"{scheme[:20]}:// is not taken here; send a file or a data URI", "bad_url")
    return _from_file(url, config)


def _from_file(text: str, config: ServeConfig) -> BinaryIO:
    """A file under an allowed folder; links are followed before the check.

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
        # Not blocking: a pipe without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise _refused(f"{text[:200]!r} cannot be opened: {error.strerror}", "media_missing") from None
    status = os.fstat(descriptor)
    # A device would be read for ever.
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _refused(f"{text[:200]!r} is not a file", "media_missing")
    if status.st_size > config.max_video_bytes:
        os.close(descriptor)
        raise _too_large(status.st_size, config.max_video_bytes)
    return os.fdopen(descriptor, "rb", buffering=0)


def _allowed(text: str, folders: list[Path]) -> Path | None:
    """`text` as a real path within one of the folders; a relative path is tried in each of them."""
    if not text or "\0" in text:
        return None
    candidates = [text] if os.path.isabs(text) else [os.path.join(folder, text) for folder in folders]
    real = [Path(os.path.realpath(candidate)) for candidate in candidates]
    inside = [path for path in real if any(path.is_relative_to(folder) for folder in folders)]
    return next((path for path in inside if os.path.lexists(path)), inside[0] if inside else None)


def explain(error: MediaError) -> RequestError:
    """The refusal of a clip that cannot be used."""
    if error.reason in ("too_long", "too_large"):
        hint = "cut out the part that the question is about" if error.reason == "too_long" else "scale it down"
        message = f"{error.detail}; {hint}"
        return RequestError(message, code=f"media_{error.reason}", status=413, param=_PARAM)
    hint = {
        "deadline": "send it shorter or at a lower resolution",
        "container": "check that the file plays, and send an mp4",
    }.get(error.reason, "check that the file plays, and encode it again as mp4 (H.264, AAC)")
    return _refused(f"the video cannot be used ({error.reason}): {error.detail}; {hint}", f"media_{error.reason}")


def _too_large(num_bytes: int, max_bytes: int) -> RequestError:
    return RequestError(
        f"the clip has {num_bytes} bytes (limit {max_bytes}); compress it or cut out a part",
        code="media_too_large",
        status=413,
        param=_PARAM,
    )


def _refused(message: str, code: str) -> RequestError:
    return RequestError(message, code=code, param=_PARAM)
