"""What a media file says of itself: streams, sizes, times. Reads headers, decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.stream import Disposition

from omni_platform.media.container import open_media
from omni_platform.media.errors import MediaError
from omni_platform.media.native import native_errors

__all__ = ["ClipProbe", "MediaError", "probe", "read_probe"]


@dataclass(frozen=True, kw_only=True)
class ClipProbe:
    """The default video stream of a file, and its default audio stream if there is one."""

    container: str
    """FFmpeg's name of the demuxer: "mov", "matroska", "mpegts", ... (`container.identify`)."""
    duration_s: float
    """As declared by the container; 0 where it does not say."""
    start_s: float
    """Time stamp of the first picture, as far as the headers say."""
    width_px: int
    """Of a picture as it is coded: before it is turned or scaled."""
    height_px: int
    num_frames: int
    """As declared, without those that an edit list skips; 0 where the container does not say (webm, mkv)."""
    video_codec: str
    audio_codec: str | None
    """None without sound; "unknown" where this build cannot decode it."""
    audio_sample_rate_hz: int | None
    audio_channels: int | None

    @property
    def has_audio(self) -> bool:
        return self.audio_codec is not None


def probe(path: str | Path | bytes | BinaryIO, *, name: str | None = None) -> ClipProbe:
    """Read the headers of a local file, its bytes or a file object; `name` stands for it in messages (default: the
    file's own name).

    Raises `MediaError` with the reason `missing`, `container` (not media, or none that is read here), `truncated`
    (an mp4 without its index), `undecodable` or `no_video`.
    """
    name = name or (Path(path).name if isinstance(path, (str, Path)) else "the given media")
    with open_clip(path, name) as container:
        return read_probe(container, name)


class open_clip:
    """`open_media`, with FFmpeg's refusals as `MediaError`; the block itself runs outside of that translation."""

    def __init__(
        self, source: str | Path | bytes | BinaryIO, name: str, *, options: dict[str, str] | None = None
    ) -> None:
        self._source, self._name = source, name
        self._opened = open_media(source, name=name, options=options)

    def __enter__(self) -> InputContainer:
        try:
            with native_errors(self._name, "opening the file"):
                return self._opened.__enter__()
        except MediaError as error:
            if error.reason == "undecodable" and _is_mp4(self._source):
                detail = f"{self._name} is an mp4 file without a readable index: it was cut or damaged"
                raise MediaError("truncated", detail) from None
            raise

    def __exit__(self, *exc: Any) -> bool | None:
        return self._opened.__exit__(*exc)


def read_probe(container: InputContainer, name: str) -> ClipProbe:
    """What an open container says of itself. Raises `MediaError`: `no_video`, `undecodable`."""
    with native_errors(name, "reading its headers"):
        video: Any = container.streams.best("video")
        audio: Any = container.streams.best("audio")
        if video is None or video.disposition & Disposition.attached_pic:
            raise MediaError("no_video", f"{name} has no video stream")
        pictures, sound = video.codec_context, audio.codec_context if audio is not None else None
        if pictures is None:
            raise MediaError("undecodable", f"{name}: no decoder for its pictures; encode it again, as H.264 say")
        start = (video.start_time or 0) * (video.time_base or 0)
        return ClipProbe(
            container=container.format.name,
            duration_s=max(container.duration or 0, 0) / av.time_base,
            start_s=float(start),
            width_px=pictures.width,
            height_px=pictures.height,
            num_frames=_declared_frames(container, video),
            video_codec=pictures.name,
            audio_codec=None if audio is None else sound.name if sound is not None else "unknown",
            audio_sample_rate_hz=sound.sample_rate if sound is not None else None,
            audio_channels=sound.channels if sound is not None else None,
        )


def _declared_frames(container: InputContainer, video: Any) -> int:
    declared = max(video.frames, 0)
    # The index of an mp4 is made from its header, less what an edit list leaves out.
    indexed = len(video.index_entries) if container.format.name == "mov" else 0
    return min(declared, indexed) if indexed else declared


def _is_mp4(source: str | Path | bytes | BinaryIO) -> bool:
    if isinstance(source, bytes):
        return source[4:8] == b"ftyp"
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                return file.read(8)[4:] == b"ftyp"
        source.seek(0)
        return source.read(8)[4:] == b"ftyp"
    except OSError:
        return False
