"""The one entry to decoding: a file becomes sampled frames and a waveform, the same way everywhere.

Preprocessing, evaluation and serving all call `decode_clip`, so that a model meets in use what it met in training.
PyAV is the reference (`pyav_frames`); decord (`decord_frames`) stands behind the same entry for files on which it
gives the same bytes.
"""

# Shapes in names: F = sampled frames, H, W = picture in pixels, N = audio samples.

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np

from omni_platform import storage
from omni_platform.media import decord_frames
from omni_platform.media.clip_source import name_of
from omni_platform.media.clock import REJOINING
from omni_platform.media.edits import start_within_picture_s
from omni_platform.media.errors import MediaError
from omni_platform.media.limits import DEFAULT_LIMITS, MediaLimits
from omni_platform.media.probe import ClipProbe, open_clip, read_probe
from omni_platform.media.pyav_frames import Pass, ReadOptions, predicted_duration_s
from omni_platform.media.sampling import FrameSampler, sample_times

__all__ = ["DECODE_VERSION", "DecodedClip", "Decoder", "MediaError", "MediaLimits", "decode_clip", "sample_times"]

DECODE_VERSION = 2
"""Goes up whenever the same file would give other frames or sound; outputs of other versions are remade."""
SAMPLE_RATE_HZ = 16_000
MAX_PIXELS = 1280 * 720
Decoder = Literal["auto", "pyav", "decord"]
_DAMAGED_SHARE = 0.02
_MAX_PASSES = 4


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


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A clip to decode, and how."""

    file: Path | bytes | BinaryIO
    fps: float
    max_frames: int
    max_duration_s: float | None
    read: ReadOptions


def decode_clip(
    source: str | Path | bytes | BinaryIO,
    *,
    fps: float = 2.0,
    max_frames: int = 256,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    max_pixels: int = MAX_PIXELS,
    max_duration_s: float | None = None,
    use_audio: bool = True,
    decoder: Decoder = "pyav",
    limits: MediaLimits = DEFAULT_LIMITS,
    should_stop: Callable[[], bool] | None = None,
    name: str | None = None,
) -> DecodedClip:
    """Decode a file at `fps` frames per second, fewer where `max_frames` binds.

    `source` is a path, a URI, the file's bytes or a seekable binary file object.

    Frames come in pairs (a temporal patch of a vision encoder): the number of frames is the even number
    nearest to duration x fps, and a time past the end shows the last frame. Pictures above `max_pixels` are
    scaled down while they are decoded. Time zero is the first picture; sound lies where its time stamps say,
    silent where there is none, and is cut or padded to the pictures.

    `decoder` "auto" takes decord for files on which it gives the same frames, "decord" refuses all others, and
    "pyav" never does: the only choice for files from strangers. Plain bytes always go to PyAV. `should_stop` is asked
    between pictures. `name` stands for the clip in messages (default: the file's own name, without folders).

    Raises `MediaError`: `missing`, `unreadable`, `container`, `undecodable`, `truncated`, `no_video`, `too_long`,
    `too_large`, `cancelled`, `not_exact` (decoder "decord"). A clip without sound is no error here.
    """
    if fps <= 0 or max_frames < 2:
        raise ValueError(f"fps must be positive and max_frames at least 2, got {fps} and {max_frames}")
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder is one of {', '.join(get_args(Decoder))}; got {decoder!r}")
    if name is None:
        name = name_of(source)
    read = ReadOptions(
        name=name,
        limits=limits,
        max_pixels=max_pixels,
        sample_rate_hz=sample_rate_hz,
        use_audio=use_audio,
        should_stop=should_stop,
    )
    with _as_file(source, name) as file:
        job = _Job(file=file, fps=fps, max_frames=max_frames, max_duration_s=max_duration_s, read=read)
        if decoder == "pyav" or isinstance(file, bytes):
            return _with_pyav(job)
        clip, reason = _with_decord(job, file)
        if clip is None and decoder == "decord":
            raise MediaError("not_exact", f"{name}: decord may give other frames, as {reason}; use decoder auto")
        return clip if clip is not None else _with_pyav(job)


@contextmanager
def _as_file(source: str | Path | bytes | BinaryIO, name: str) -> Iterator[Path | bytes | BinaryIO]:
    """A local file with the clip's content, or what is open already."""
    if not isinstance(source, (str, Path)):
        yield source
        return
    try:
        with storage.local_copy(source) as path:
            yield path
    except FileNotFoundError:
        raise MediaError("missing", f"{name} does not exist") from None


def _checked_probe(container: Any, job: _Job) -> ClipProbe:
    """What the headers say, held against the limits before anything is decoded."""
    limits, name = job.read.limits, job.read.name
    info = read_probe(container, name)
    limits.check_picture(info.width_px, info.height_px, name)
    limits.check_frames(info.num_frames, name)
    if job.read.use_audio:
        limits.check_sound(info.audio_sample_rate_hz or 0, info.audio_channels or 0, name)
    _check_duration(info.duration_s, job)
    return info


def _check_duration(duration_s: float, job: _Job) -> None:
    if job.max_duration_s is not None and not duration_s <= job.max_duration_s:
        detail = f"{job.read.name} lasts {duration_s:.1f} s, allowed are {job.max_duration_s:g} s"
        raise MediaError("too_long", detail)
    job.read.limits.check_duration(duration_s, job.read.name)


def _with_pyav(job: _Job) -> DecodedClip:
    """One pass. Only where `max_frames` binds does the rate hang on the duration: then packets are read beforehand.

    What that predicts is held against what was decoded, and a file that fooled it is decoded again.
    """
    allowed = job.max_frames - job.max_frames % 2
    predicted_s: float | None = None
    is_longer = False  # than the header says
    for _ in range(_MAX_PASSES):
        with open_clip(job.file, job.read.name) as container:
            info = _checked_probe(container, job)
            if predicted_s is None and (is_longer or not 0 < info.duration_s * job.fps < allowed - 2):
                predicted_s = predicted_duration_s(container, job.read)
                continue
            rate = job.fps
            if predicted_s:
                rate = sample_times(predicted_s, fps=job.fps, max_frames=job.max_frames)[1]
            expected = int((predicted_s or info.duration_s) * rate) + 2
            sampler = FrameSampler(rate=rate, max_kept=allowed, expected=expected)
            reading = Pass(container, info, job.read)
            # Without a prediction, a picture out here means that the rate has to be lower.
            give_up_s = (allowed + 2) / job.fps if predicted_s is None else float("inf")
            if not reading.run(sampler, give_up_s=give_up_s):
                is_longer = True
                continue
        duration_s = _checked_duration(reading, info, job)
        times_s, true_rate = sample_times(duration_s, fps=job.fps, max_frames=job.max_frames)
        if true_rate == rate:
            return DecodedClip(
                frames=sampler.finish(len(times_s)),
                sample_fps=true_rate,
                waveform=_beside_pictures(reading, duration_s, job),
                duration_s=duration_s,
            )
        predicted_s = duration_s
    raise MediaError("undecodable", f"{job.read.name}: its duration is another one each time it is read")


def _beside_pictures(reading: Pass, duration_s: float, job: _Job) -> np.ndarray | None:
    """The sound where it belongs beside the pictures."""
    joints = reading.clock.joints
    if reading.begins_within_edit and reading.audio_index is not None:
        late_s = start_within_picture_s(job.file, job.read.name)
        joints = [(stamp_s + late_s, place_s) for stamp_s, place_s in joints]
    return reading.sound.render(joints, duration_s)


def _checked_duration(reading: Pass, info: ClipProbe, job: _Job) -> float:
    """How long the pictures last; refuses what was cut, damaged, or is longer than its header said."""
    duration_s, name = reading.clock.end_s, job.read.name
    _check_duration(duration_s, job)
    _refuse_truncated(reading, info, duration_s, name)
    for index, damaged in reading.num_damaged.items():
        packets = reading.num_packets[index]
        if damaged > max(2, _DAMAGED_SHARE * packets):
            what = "pictures" if index == reading.video_index else "packets of sound"
            raise MediaError("undecodable", f"{name} is damaged: {damaged} of {packets} {what} cannot be decoded")
    if reading.breaks_off:
        raise MediaError("undecodable", f"{name} cannot be read to its end")
    if not reading.num_frames or duration_s <= 0:
        raise MediaError("undecodable", f"{name} has no picture that can be decoded")
    return duration_s


def _refuse_truncated(reading: Pass, info: ClipProbe, duration_s: float, name: str) -> None:
    """A cut file often decodes without complaint: compare with what its header promised."""
    found = reading.num_packets[reading.video_index]
    if found < (1 - _DAMAGED_SHARE) * info.num_frames - 1:
        raise MediaError("truncated", f"{name} should have {info.num_frames} frames, {found} are there")
    if info.container in REJOINING:
        return  # these have no header that promises a duration
    start_s = float(reading.clock.joints[0][0]) if reading.clock.joints else 0.0
    # Sound that is left out may be what lasts as long as the header says.
    unread = info.has_audio and reading.audio_index is None
    reached_s = info.duration_s if unread else max(start_s + duration_s, reading.sound.end_s)
    if info.duration_s - reached_s > max(0.5, 0.05 * info.duration_s):
        detail = f"{name} should last {info.duration_s:.2f} s, its data end after {reached_s:.2f} s"
        raise MediaError("truncated", detail)


def _with_decord(job: _Job, file: Path | BinaryIO) -> tuple[DecodedClip | None, str]:
    """The clip by decord, or None and the reason why it may give other frames."""
    read = job.read
    with open_clip(file, read.name) as container:
        info = _checked_probe(container, job)
        if reason := decord_frames.why_not_exact(info, decord_frames.first_picture(container), read):
            return None, reason
    table = decord_frames.PacketTable()
    with open_clip(file, read.name) as container:
        reading = Pass(container, info, read)
        reading.run_sound(table.add)
    if reason := table.why_not_plain(info.num_frames):
        return None, reason
    # By the clock of the reference, in order of presentation: what it decodes and what we predict are the same.
    starts_s = np.array([reading.clock.place(*picture) for picture in table.in_order()])
    reading.num_frames = len(starts_s)
    duration_s = _checked_duration(reading, info, job)
    times_s, sample_fps = sample_times(duration_s, fps=job.fps, max_frames=job.max_frames)
    try:
        frames = decord_frames.read_frames(file, starts_s, times_s, read)
    except MediaError as error:
        if error.reason == "cancelled":
            raise
        return None, "it cannot read the file"  # PyAV will, or will say what is wrong
    waveform = _beside_pictures(reading, duration_s, job)
    return DecodedClip(frames=frames, sample_fps=sample_fps, waveform=waveform, duration_s=duration_s), ""
