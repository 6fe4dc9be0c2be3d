"""What a media file says of itself: streams, sizes, times. Reads headers, decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
from av.stream import Disposition

from omni_platform.media.errors import MediaError

av.logging.set_level(av.logging.PANIC)  # what goes wrong is told by MediaError, once


@dataclass(frozen=True, kw_only=True)
class ClipProbe:
    """The default video stream of a file, and its default audio stream if there is one."""

    duration_s: float
    """As declared by the container; 0 where it does not say."""
    start_s: float
    """Time stamp of the first picture."""
    width_px: int
    height_px: int
    num_frames: int
    """As declared; 0 where the container does not say (webm, mkv)."""
    video_codec: str
    audio_codec: str | None
    audio_sample_rate_hz: int | None

    @property
    def has_audio(self) -> bool:
        return self.audio_codec is not None


def probe(path: str | Path, *, name: str | None = None) -> ClipProbe:
    """Read the headers of a local file; `name` stands for it in messages.

    Raises `MediaError` with the reason `missing`, `truncated` (an mp4 without its index), `undecodable` (not
    media at all) or `no_video`.
    """
    name = name or str(path)
    try:
        with av.open(str(path)) as container:
            return _read(container, name)
    except FileNotFoundError:
        raise MediaError("missing", f"{name} does not exist") from None
    except (av.error.FFmpegError, OSError, UnicodeDecodeError) as error:
        if _is_mp4(path):
            raise MediaError("truncated", f"{name} is an mp4 file without its index: it was cut") from None
        raise MediaError("undecodable", f"{name} is not a readable media file: {error}") from None


def _read(container: Any, name: str) -> ClipProbe:
    video, audio = container.streams.best("video"), container.streams.best("audio")
    if video is None or video.disposition & Disposition.attached_pic:
        raise MediaError("no_video", f"{name} has no video stream")
    return ClipProbe(
        duration_s=(container.duration or 0) / av.time_base,
        start_s=float((video.start_time or 0) * video.time_base),
        width_px=video.codec_context.width,
        height_px=video.codec_context.height,
        num_frames=video.frames,
        video_codec=video.codec_context.name,
        audio_codec=audio.codec_context.name if audio is not None else None,
        audio_sample_rate_hz=audio.codec_context.sample_rate if audio is not None else None,
    )


def _is_mp4(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False
