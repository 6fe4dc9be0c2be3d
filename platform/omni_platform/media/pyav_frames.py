"""The reference decoder: PyAV, one pass over a file for pictures and sound, in the order of the file."""

# Shapes in names: F = sampled frames, H, W = picture in pixels.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from omni_platform.media.clock import REJOINING, Clock
from omni_platform.media.errors import MediaError
from omni_platform.media.limits import MediaLimits
from omni_platform.media.native import native_errors, read_packets
from omni_platform.media.probe import ClipProbe
from omni_platform.media.sampling import FrameSampler
from omni_platform.media.sound import SoundTrack


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a pass over a file needs to know beside the file."""

    name: str
    limits: MediaLimits
    max_pixels: int
    sample_rate_hz: int
    use_audio: bool
    should_stop: Callable[[], bool] | None

    def poll(self) -> None:
        """Raise `MediaError("cancelled")` where nobody wants the clip any more."""
        if self.should_stop is not None and self.should_stop():
            raise MediaError("cancelled", f"{self.name}: decoding was cancelled")


class Pass:
    """One reading of an open file from its beginning: what came by, and what was kept of it."""

    def __init__(self, container: InputContainer, info: ClipProbe, options: ReadOptions) -> None:
        self._container, self._options = container, options
        rejoins = info.container in REJOINING
        self._video: Any = container.streams.best("video")
        self._audio: Any = container.streams.best("audio") if options.use_audio else None
        if self._audio is not None and self._audio.codec_context is None:
            raise MediaError("undecodable", f"{options.name}: no decoder for its sound; encode it again, as AAC say")
        # Kept as numbers: a stream of PyAV must not be touched once its file is closed.
        self.video_index = int(self._video.index)
        self.audio_index = int(self._audio.index) if self._audio is not None else None
        self.clock = Clock(self._video.time_base, rejoins=rejoins)
        self.sound = SoundTrack(options.sample_rate_hz, rejoins=rejoins)
        self.num_frames = 0
        self._counts_packets = info.container == "avi"
        self._first_dts: int | None = None
        self._held_back: int | None = None
        streams = [index for index in (self.video_index, self.audio_index) if index is not None]
        self.num_packets = dict.fromkeys(streams, 0)
        self.num_damaged = dict.fromkeys(streams, 0)
        self.begins_within_edit = False
        """Whether an edit list leaves out the first pictures."""
        self.breaks_off = False
        """Whether the file could not be read to its end."""
        self._canvas = _Canvas(options)

    def run(self, sampler: FrameSampler, *, give_up_s: float = float("inf")) -> bool:
        """Decode everything and offer the pictures to `sampler`.

        False where a picture lies after `give_up_s`: then the rest is unread. Raises `MediaError`.
        """
        _one_thread(self._video, self._options.limits)
        for packet in self._packets(self._video, self._audio):
            if packet.stream.index == self.audio_index:
                self._hear(packet)
                continue
            for frame in self._decoded(packet):
                start_s = self._place(frame)
                if start_s > give_up_s:
                    return False
                if not sampler.is_full:
                    sampler.offer(start_s, self._canvas.converter(frame))
        with native_errors(self._options.name, "decoding the sound"):
            self.sound.finish()
        return True

    def run_sound(self, see: Callable[[Any], None]) -> None:
        """Decode the sound alone; packets of pictures go to `see`, undecoded. Raises `MediaError`."""
        for packet in self._packets(self._video, self._audio):
            if packet.stream.index == self.audio_index:
                self._hear(packet)
            elif packet.size:
                see(packet)
        with native_errors(self._options.name, "decoding the sound"):
            self.sound.finish()

    def _packets(self, *streams: Any) -> Iterator[Any]:
        packets = read_packets(self._container, *(stream for stream in streams if stream is not None))
        while True:
            self._options.poll()
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise MediaError("too_large", f"{self._options.name}: reading needs too much memory") from None
                self.breaks_off, packet = True, None
            if packet is None:
                break
            if packet.size:
                self.num_packets[packet.stream.index] += 1
                if self.num_packets[self.video_index] == 1 and packet.stream.index == self.video_index:
                    self._first_dts, self.begins_within_edit = packet.dts, packet.is_discard
            yield packet
        if self.breaks_off:
            # What the decoders still hold belongs to the part that could be read.
            for stream in streams:
                if stream is not None:
                    yield _Flush(stream=stream)

    def _hear(self, packet: Any) -> None:
        for frame in self._decoded(packet):
            with native_errors(self._options.name, "decoding the sound"):
                self._options.limits.check_sound(frame.sample_rate, frame.layout.nb_channels, self._options.name)
                self.sound.add(frame)
            self._options.limits.check_duration(self.sound.length_s, self._options.name)

    def _decoded(self, packet: Any) -> list[Any]:
        """Frames of a packet. Damaged ones are counted: a few are borne, as players do."""
        index = packet.stream.index
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            self.num_damaged[index] += 1
            return []
        except Exception:
            with native_errors(self._options.name, "decoding"):
                raise
        self.num_damaged[index] += sum(frame.is_corrupt for frame in frames)
        return frames

    def _place(self, frame: Any) -> float:
        """When a picture comes on screen; also where the limits are held against the truth."""
        limits, name = self._options.limits, self._options.name
        self._options.poll()
        limits.check_picture(frame.width, frame.height, name)
        self.num_frames += 1
        limits.check_frames(self.num_frames, name)
        start_s = self.clock.place(self._stamp(frame), frame.duration)
        limits.check_duration(start_s, name)
        return start_s

    def _stamp(self, frame: Any) -> int | None:
        """The time stamp of a picture. An avi has no times but the order of its packets, and FFmpeg's guess lags
        behind the sound by as many pictures as the decoder holds back: there the first one belongs to the first packet.
        """
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None or not self._counts_packets:
            return stamp
        if self._held_back is None:
            self._held_back = stamp - (self._first_dts if self._first_dts is not None else stamp)
        return stamp - self._held_back


@dataclass(frozen=True, kw_only=True)
class _Flush:
    """Stands for the packet that empties a decoder after reading failed."""

    stream: Any
    size: int = 0

    def decode(self) -> list[Any]:
        frames = self.stream.decode(None)
        for frame in frames:
            frame.time_base = self.stream.time_base
        return frames


def _one_thread(video: Any, limits: MediaLimits) -> None:
    """Many decoders run beside each other, one per core. A picture that grows on the way is refused by FFmpeg."""
    video.codec_context.thread_count = 1
    video.codec_context.options = {"max_pixels": str(limits.max_coded_pixels)}


class _Canvas:
    """Turns decoded pictures into RGB of one size: scaled and converted in one step, then turned upright."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._scaler = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._matrix: np.ndarray | None = None

    def converter(self, frame: Any) -> Callable[[], np.ndarray]:
        return lambda: self._convert(frame)

    def _convert(self, frame: Any) -> np.ndarray:
        if self._size is None:  # for later pictures too, whatever theirs are: the frames of a clip have one shape
            self._size = fitting_size(frame.width, frame.height, self._options.max_pixels)
            self._matrix = display_matrix(frame)
        width, height = self._size
        smaller = width * height < frame.width * frame.height
        with native_errors(self._options.name, "converting a picture"):
            picture = self._scaler.reformat(
                frame, width, height, "rgb24", interpolation="AREA" if smaller else "BICUBIC", threads=1
            ).to_ndarray()
            return upright(picture, self._matrix)


def fitting_size(width_px: int, height_px: int, max_pixels: int) -> tuple[int, int]:
    """Width and height scaled down to at most `max_pixels`, keeping the shape."""
    if width_px * height_px <= max_pixels:
        return width_px, height_px
    scale = (max_pixels / (height_px * width_px)) ** 0.5
    return max(2, int(width_px * scale)), max(2, int(height_px * scale))


def display_matrix(frame: Any) -> np.ndarray | None:
    """How a picture is to be turned: int32 (2, 2), x' = m00 x + m10 y and y' = m01 x + m11 y; None for as it is."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    return np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]


def upright(picture: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turn and mirror a picture (H, W, 3) by its display matrix, to the nearest quarter turn."""
    if matrix is None:
        return picture
    (a, b), (c, d) = matrix.astype(np.int64)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_x, flip_y = a < 0, d < 0
    else:
        picture = picture.swapaxes(0, 1)
        flip_x, flip_y = c < 0, b < 0
    return picture[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def predicted_duration_s(container: InputContainer, options: ReadOptions) -> float:
    """How long the pictures last by their packets, undecoded: what decoding will find in all but odd files."""
    video: Any = container.streams.best("video")
    first: int | None = None
    end = 0
    try:
        for packet in read_packets(container, video):
            options.poll()
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None or not packet.size or packet.is_discard:
                continue
            first = stamp if first is None else min(first, stamp)
            end = max(end, stamp + (packet.duration or 0))
    except av.error.FFmpegError:
        pass  # decoding will meet it again, and says so
    base = video.time_base
    return max(end - first, 0) * base.numerator / base.denominator if first is not None else 0.0
