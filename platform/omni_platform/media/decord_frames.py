"""decord as a second backend: only for files on which it gives the very frames of the reference decoder.

decord addresses pictures by number and seeks, which is right for some files and silently wrong for others: it knows
no edit lists, drops what a seek cannot rebuild, and guesses durations. So PyAV reads the packets first, and only
where their structure leaves nothing to guess are the pictures taken from decord. The conformance suite
(tests/platform/test_conformance.py) holds both against each other, byte by byte.

What packets cannot show is damage within a picture: a file of which decord replaces a picture goes back to PyAV, but
where both conceal a broken block, each does it in its way.

decord's FFmpeg is old and finds the container by itself: it is given trusted local files only.
"""

# Shapes in names: F = sampled frames, H, W = picture in pixels.

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import av.error
import decord
import numpy as np
from av.container import InputContainer

from omni_platform.media.errors import MediaError
from omni_platform.media.native import native_errors, read_packets
from omni_platform.media.probe import ClipProbe
from omni_platform.media.pyav_frames import ReadOptions, display_matrix, fitting_size
from omni_platform.media.sampling import on_screen

decord.logging.set_level(decord.logging.QUIET)

_CONTAINERS = ("mov", "matroska")
_CODECS = ("h264", "hevc")
"""Not vp8 and vp9: their packets may hold pictures that are never shown."""
_CHUNK = 8


@dataclass(kw_only=True)
class PacketTable:
    """The pictures of a file by their packets, in the order of the file; nothing is decoded."""

    stamps: list[int] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    is_key: list[bool] = field(default_factory=list)
    odd: str | None = None
    """What is not plain about a packet, in words."""

    def add(self, packet: Any) -> None:
        """Take note of the next packet of the video stream."""
        if packet.pts is None:
            self.odd = "a picture has no time stamp"
        elif packet.is_discard:
            self.odd = "an edit list leaves pictures out"
        elif packet.is_corrupt or packet.has_sidedata("new_extradata"):
            self.odd = "a packet is damaged or changes the codec's settings"
        else:
            self.stamps.append(packet.pts)
            self.durations.append(packet.duration or 0)
            self.is_key.append(bool(packet.is_keyframe))

    def in_order(self) -> list[tuple[int, int]]:
        """Time stamp and duration of every picture (ticks), in order of presentation."""
        return sorted(zip(self.stamps, self.durations, strict=True))

    def why_not_plain(self, num_declared: int) -> str | None:
        """Why counting packets does not count pictures in order; None where it does.

        `num_declared` is the number of pictures by the header, 0 where it does not say.
        """
        if self.odd or not self.stamps:
            return self.odd or "it has no pictures"
        if num_declared and num_declared != len(self.stamps):
            return "its header counts other pictures"
        if not self.is_key[0] or self.stamps[0] != 0 or min(self.stamps) != 0:
            return "the first picture is no key frame at time zero"
        if len(set(self.stamps)) != len(self.stamps) or min(self.durations) <= 0:
            return "its time stamps or durations are not plain"
        latest = -1
        for stamp, is_key in zip(self.stamps, self.is_key, strict=True):
            # Every picture before a key frame is shown before it, every one after it later: a seek loses nothing.
            if is_key and stamp < latest:
                return "a key frame is shown before a picture that precedes it"
            latest = max(latest, stamp)
        for key in (k for k, is_key in enumerate(self.is_key) if is_key):
            if min(self.stamps[key:]) < self.stamps[key]:
                return "pictures after a key frame are shown before it (open groups)"
        return None


def why_not_exact(info: ClipProbe, first: Any, options: ReadOptions) -> str | None:
    """Why decord might give other pictures than the reference decoder; None where only their order is in question.

    `first` is the first picture as PyAV decodes it. The order is up to `PacketTable.why_not_plain`.
    """
    if info.container not in _CONTAINERS or info.video_codec not in _CODECS:
        return f"it is {info.video_codec} in {info.container}"
    if first is None or first.format.name != "yuv420p" or first.width % 2 or first.height % 2:
        return "its pictures are not 8-bit 4:2:0 of even size"
    if first.color_range == 2 or first.interlaced_frame or display_matrix(first) is not None:
        return "its pictures are to be turned, in full range or interlaced"
    if fitting_size(first.width, first.height, options.max_pixels) != (first.width, first.height):
        return "its pictures are scaled"
    return None


def first_picture(container: InputContainer) -> Any:
    """The first decoded picture, or None."""
    video: Any = container.streams.best("video")
    video.codec_context.thread_count = 1
    try:
        for packet in read_packets(container, video):
            for frame in packet.decode():
                return frame
    except av.error.FFmpegError:
        pass
    return None


def read_frames(file: Path | BinaryIO, starts_s: np.ndarray, times_s: np.ndarray, options: ReadOptions) -> np.ndarray:
    """The pictures on screen at the given times, uint8 (F, H, W, 3), a few at a time.

    `starts_s` are the times of all pictures of the file, ascending. Raises `MediaError`.
    """
    with native_errors(options.name, "decoding with decord"):
        # One thread: many decoders run beside each other, one per core.
        if not isinstance(file, Path):
            file.seek(0)
        reader = decord.VideoReader(str(file) if isinstance(file, Path) else file, num_threads=1, fault_tol=1)
        if len(reader) != len(starts_s):
            raise MediaError("undecodable", f"{options.name}: decord counts {len(reader)} of {len(starts_s)} pictures")
        unique, back = np.unique(on_screen(starts_s, times_s), return_inverse=True)
        pictures: np.ndarray | None = None
        for start in range(0, len(unique), _CHUNK):
            options.poll()
            chunk = reader.get_batch(unique[start : start + _CHUNK].tolist()).asnumpy()
            if pictures is None:
                pictures = np.empty((len(unique), *chunk.shape[1:]), np.uint8)
            pictures[start : start + len(chunk)] = chunk
        assert pictures is not None
        return pictures if len(unique) == len(back) else pictures[back]
