"""The one decoder of the house: a file becomes sampled frames and a waveform, the same way everywhere.

Preprocessing, evaluation and serving all call `decode_clip`, so that a model meets in use what it met in
training. decord gives exact frames by index; PyAV gives sound (decord's audio reader never frees its memory).
"""

# Shapes in names: F = sampled frames, H, W = picture in pixels, N = audio samples.

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import decord
import numpy as np

from omni_platform import storage
from omni_platform.media.container import open_media
from omni_platform.media.probe import ClipProbe, MediaError, probe

decord.logging.set_level(decord.logging.QUIET)

DECODE_VERSION = 1
"""Goes up whenever the same file would give other frames or sound; outputs of other versions are remade."""
SAMPLE_RATE_HZ = 16_000
MAX_PIXELS = 1280 * 720
_CHUNK = 8
_DAMAGED_SHARE = 0.02
_DECORD_ERRORS = (RuntimeError, AssertionError, decord.DECORDError, decord.DECORDLimitReachedError)


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """A clip as a model takes it."""

    frames: np.ndarray
    """uint8 (F, H, W, 3), F even: frame i is the one on screen at time i / sample_fps."""
    sample_fps: float
    """The true rate of the sampled frames."""
    waveform: np.ndarray | None
    """float32 (N,) in [-1, 1), mono, on the 16-bit grid, as long as the pictures; None without sound."""
    duration_s: float
    """How long the pictures last."""

    @property
    def has_audio(self) -> bool:
        return self.waveform is not None

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to hear: no track, or a track of zeros."""
        return self.waveform is None or float(np.abs(self.waveform).max(initial=0.0)) < 1e-4


def decode_clip(
    source: str | Path | bytes | BinaryIO,
    *,
    name: str | None = None,
    should_stop: Callable[[], bool] | None = None,
    fps: float = 2.0,
    max_frames: int = 256,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_pixels: int = MAX_PIXELS,
    max_duration_s: float | None = None,
    use_audio: bool = True,
) -> DecodedClip:
    """Decode a file (path, URI or its bytes) at `fps` frames per second, fewer where `max_frames` binds.

    Frames come in pairs (a temporal patch of a vision encoder): the number of frames is the even number
    nearest to duration x fps, and a time past the end shows the last frame. Pictures above `max_pixels` are
    scaled down. Time zero is the first picture; sound is cut or padded to the pictures.

    Raises `MediaError`: `missing`, `undecodable`, `truncated`, `no_video`, `too_long`. A clip without sound
    is no error here.
    """
    if fps <= 0 or max_frames < 2:
        raise ValueError(f"fps must be positive and max_frames at least 2, got {fps} and {max_frames}")
    with _as_file(source, name) as (path, name):
        info = probe(path, name=name)
        _refuse_long(info.duration_s, max_duration_s, name)
        try:
            reader = _open_video(path, info)
            starts_s, end_s = _frame_times(reader)
            duration_s = end_s - float(starts_s[0])
            _refuse_long(duration_s, max_duration_s, name)
            times_s, sample_fps = sample_times(duration_s, fps=fps, max_frames=max_frames)
            frames = _read_frames(reader, starts_s - starts_s[0], times_s, max_pixels)
        except _DECORD_ERRORS as error:
            raise _why_undecodable(path, info, error, name) from None
        waveform, audio_end_s = None, 0.0
        if info.has_audio and use_audio:
            waveform, audio_end_s = _read_audio(path, info.start_s, duration_s, sample_rate_hz, name)
    unread = info.has_audio and not use_audio  # the sound may be what lasts as long as the header says
    reached_s = info.duration_s if unread else info.start_s + max(duration_s, audio_end_s)
    _refuse_truncated(info, len(starts_s), reached_s, name)
    return DecodedClip(frames=frames, sample_fps=sample_fps, waveform=waveform, duration_s=duration_s)


def sample_times(duration_s: float, *, fps: float, max_frames: int) -> tuple[np.ndarray, float]:
    """Times of the sampled frames (seconds, an even number of them), and their true rate."""
    wanted = max(2, 2 * round(duration_s * fps / 2))
    allowed = max_frames - max_frames % 2
    if wanted > allowed:
        wanted, fps = allowed, allowed / duration_s
    return np.arange(wanted) / fps, fps


@contextmanager
def _as_file(source: str | Path | bytes | BinaryIO, name: str | None) -> Iterator[tuple[Any, str]]:
    """A local file with the clip's content, and the name it goes by in messages."""
    if isinstance(source, bytes):
        yield source, name or f"the given media ({len(source)} bytes)"
        return
    if not isinstance(source, (str, Path)):
        yield source, name or "the given media"
        return
    try:
        with storage.local_copy(source) as path:
            yield path, name or str(source)
    except FileNotFoundError:
        raise MediaError("missing", f"{source} does not exist") from None


def _refuse_long(duration_s: float, max_duration_s: float | None, name: str) -> None:
    if max_duration_s is not None and duration_s > max_duration_s:
        raise MediaError("too_long", f"{name} lasts {duration_s:.1f} s, allowed are {max_duration_s:g} s")


def _open_video(path: Any, info: ClipProbe) -> Any:
    # `fault_tol`: how many unreadable frames may be replaced by their neighbours without a word.
    replaced = max(2, round(_DAMAGED_SHARE * info.num_frames))
    # One thread: many decoders run beside each other, one per core.
    return decord.VideoReader(io.BytesIO(_content(path)), num_threads=1, fault_tol=replaced)


def _content(source: Any) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    source.seek(0)
    return source.read()


def _frame_times(reader: Any) -> tuple[np.ndarray, float]:
    """When each frame of the file comes on screen, and when the last one leaves it (seconds)."""
    times_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)
    if not np.isfinite(times_s).all() or times_s[-1, 1] <= times_s[0, 0]:
        raise RuntimeError("no usable time stamps")
    return times_s[:, 0], float(times_s[-1, 1])


def _read_frames(reader: Any, starts_s: np.ndarray, times_s: np.ndarray, max_pixels: int) -> np.ndarray:
    """The frames on screen at the given times, read a few at a time: all frames are never held."""
    # Time stamps are float32 in decord: half a millisecond keeps "exactly at the cut" on the new side.
    on_screen = np.clip(np.searchsorted(starts_s, times_s + 5e-4, side="right") - 1, 0, len(starts_s) - 1)
    unique, back = np.unique(on_screen, return_inverse=True)
    pictures: np.ndarray | None = None
    for start in range(0, len(unique), _CHUNK):
        chunk = _fit(reader.get_batch(unique[start : start + _CHUNK].tolist()).asnumpy(), max_pixels)
        if pictures is None:
            pictures = np.empty((len(unique), *chunk.shape[1:]), np.uint8)
        pictures[start : start + len(chunk)] = chunk
    assert pictures is not None
    return pictures if len(unique) == len(back) else pictures[back]


def _fit(frames: np.ndarray, max_pixels: int) -> np.ndarray:
    """Scale pictures down to at most `max_pixels`, keeping their shape.

    Not by decord's own width and height: with a rotated video (a phone held upright) it returns rubbish.
    """
    height, width = frames.shape[1:3]
    if height * width <= max_pixels:
        return frames
    scale = (max_pixels / (height * width)) ** 0.5
    to_width, to_height = (max(2, int(side * scale)) for side in (width, height))
    fitted = np.empty((len(frames), to_height, to_width, 3), np.uint8)
    for i, frame in enumerate(frames):
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        fitted[i] = whole.reformat(to_width, to_height, interpolation="AREA").to_ndarray(format="rgb24")
    return fitted


def _read_audio(
    path: Any, start_s: float, duration_s: float, sample_rate_hz: int, name: str
) -> tuple[np.ndarray | None, float]:
    """Sound from `start_s` on, exactly `duration_s` long, and the time where the track ends.

    None where the track holds no sound within the clip.
    """
    wave = np.zeros(round(duration_s * sample_rate_hz), np.int16)
    heard, cursor = False, None
    try:
        for frame in _resampled(path, sample_rate_hz):
            if cursor is None:
                # Tracks need not begin together; only the first stamp counts, codecs drift by a sample.
                cursor = round((float(frame.time or 0.0) - start_s) * sample_rate_hz)
            samples = frame.to_ndarray()[0]
            first, last = max(cursor, 0), min(cursor + len(samples), len(wave))
            if first < last:
                wave[first:last] = samples[first - cursor : last - cursor]
                heard = True
            cursor += len(samples)
    except av.error.FFmpegError as error:
        raise MediaError("undecodable", f"{name}: the sound cannot be decoded: {error}") from None
    end_s = (cursor or 0) / sample_rate_hz
    return (wave.astype(np.float32) / 32768.0 if heard else None), end_s


def _resampled(path: Any, sample_rate_hz: int) -> Iterator[Any]:
    """Mono 16-bit frames of the default audio track."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=sample_rate_hz)
    with open_media(path, name="the clip") as container:
        for frame in container.decode(container.streams.best("audio")):
            assert isinstance(frame, av.AudioFrame)
            yield from resampler.resample(frame)
        yield from resampler.resample(None)


def _refuse_truncated(info: ClipProbe, num_frames: int, reached_s: float, name: str) -> None:
    """A cut file often decodes without complaint: compare with what its header promised."""
    missing_s = info.duration_s - reached_s
    if missing_s > max(0.5, 0.05 * info.duration_s):
        detail = f"{name} should last {info.duration_s:.2f} s, its data end after {reached_s:.2f} s"
        raise MediaError("truncated", detail)
    if num_frames < (1 - _DAMAGED_SHARE) * info.num_frames - 1:
        detail = f"{name} should have {info.num_frames} frames, {num_frames} are there"
        raise MediaError("truncated", detail)


def _why_undecodable(path: Any, info: ClipProbe, error: BaseException, name: str) -> MediaError:
    """decord gives one error for cut and for damaged files; in a cut one packets are missing."""
    promised = found = 0
    try:
        with open_media(path, name="the clip") as container:
            promised = sum(stream.frames for stream in container.streams)
            found = sum(packet.size > 0 for packet in container.demux())
    except av.error.FFmpegError:
        pass
    if found < promised:
        return MediaError("truncated", f"{name} breaks off: {found} of {promised} packets are there")
    # The first line: a C++ stack trace follows below it.
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return MediaError("undecodable", f"{name}: {first_line}")
