"""Clips that say what they hold: every picture shows its number, and beeps sound at known times.

Everything is encoded and muxed here with PyAV; what it cannot make (edit lists of all kinds) is written into the boxes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8
FPS = 25
NUM_FRAMES = 75
BEEPS_S = (0.3, 1.2, 2.2)
BEEP_S = 0.15
_TONE_HZ = 1000


@dataclass(kw_only=True)
class Truth:
    """What a clip holds, in seconds since its first picture."""

    numbers: list[int]
    """The number that each picture shows, in order of presentation."""
    starts_s: list[float]
    """When each comes on screen."""
    end_s: float
    beeps_s: list[float]
    turned: int = 0
    """Quarter turns, counter-clockwise, that bring the upright picture back to how it was drawn."""

    def shown_at(self, time_s: float) -> int:
        """The number on screen at a time; half a millisecond of rounding is granted as the decoder does."""
        return self.numbers[max(np.searchsorted(self.starts_s, time_s + 5e-4, side="right") - 1, 0)]


def draw(number: int, width: int = 128, height: int = 32) -> np.ndarray:
    """uint8 (height, width, 3): the bits of the number as bars, and below them their negative."""
    bars = np.array([(number >> bit) & 1 for bit in range(BITS)], np.uint8)
    row = bars[np.minimum(np.arange(width) * BITS // width, BITS - 1)] * 255
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2] = row[None, :, None]
    picture[height // 2 :] = 255 - row[None, :, None]
    return picture


def read_number(picture: np.ndarray) -> int:
    """The number that a picture shows. A mirrored or turned picture shows another one."""
    height, width = picture.shape[:2]
    difference = picture[: height // 2].mean((0, 2)) - picture[height // 2 :][: height // 2].mean((0, 2))
    centres = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    return sum(int(difference[x] > 0) << bit for bit, x in enumerate(centres))


def hear_beeps(waveform: np.ndarray, rate_hz: int = 16_000) -> list[float]:
    """When the beeps begin, in seconds."""
    block = rate_hz // 500
    loud = np.abs(waveform[: len(waveform) // block * block]).reshape(-1, block).max(1) > 0.2
    beeps, last = [], -1e9
    for i in np.flatnonzero(loud):
        if (i - last) * block / rate_hz > 0.1:
            beeps.append(float(i * block / rate_hz))
        last = i
    return beeps


@dataclass(kw_only=True)
class Recipe:
    """How to make a clip; the default is an ordinary one: 75 pictures at 25 a second, with sound."""

    suffix: str = "mp4"
    format: str | None = None
    mux: dict[str, str] = field(default_factory=dict)
    video: str = "libx264"
    video_options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (128, 32)
    stamps_ms: list[int] = field(default_factory=lambda: [40 * k for k in range(NUM_FRAMES)])
    last_ms: int = 40
    """How long the last picture stays."""
    audio: str | None = "aac"
    audio_rate_hz: int = 48_000
    layout: str = "stereo"
    sound_s: tuple[float, float] = (0.0, 3.0)
    gaps_s: tuple[tuple[float, float], ...] = ()
    """Sound of these times is not in the file."""
    beeps_s: tuple[float, ...] = BEEPS_S
    """By the clock of the time stamps, as `stamps_ms`."""
    first_number: int = 0


def make(path: Path, recipe: Recipe) -> Truth:
    """Write a clip and say what it holds."""
    with av.open(str(path), "w", format=recipe.format, options=recipe.mux) as container:
        _fill(container, recipe)
    return truth_of(recipe)


def truth_of(recipe: Recipe) -> Truth:
    """What a clip of a recipe holds."""
    zero, end = recipe.stamps_ms[0], recipe.stamps_ms[-1] + recipe.last_ms
    return Truth(
        numbers=[recipe.first_number + k for k in range(len(recipe.stamps_ms))],
        starts_s=[(stamp - zero) / 1000 for stamp in recipe.stamps_ms],
        end_s=(end - zero) / 1000,
        beeps_s=[beep - zero / 1000 for beep in recipe.beeps_s if beep * 1000 < end] if recipe.audio else [],
    )


def _fill(container: Any, recipe: Recipe) -> None:
    video = container.add_stream(recipe.video, rate=FPS, options=recipe.video_options)
    video.width, video.height = recipe.size
    video.pix_fmt = recipe.pix_fmt
    # Codecs of old count pictures, not milliseconds.
    regular = all(stamp == recipe.stamps_ms[0] + 40 * k for k, stamp in enumerate(recipe.stamps_ms))
    tick = Fraction(1, FPS) if regular and recipe.stamps_ms[0] % 40 == 0 else Fraction(1, 1000)
    video.codec_context.time_base = tick
    video.codec_context.thread_count = 1
    audio = None
    if recipe.audio:
        audio = container.add_stream(recipe.audio, rate=recipe.audio_rate_hz, layout=recipe.layout)
        audio.bit_rate = 192_000
    packets = list(_video_packets(video, recipe, tick))
    if audio is not None:
        packets += list(_audio_packets(audio, recipe))
    packets.sort(key=lambda p: float((p.dts if p.dts is not None else p.pts or 0) * p.time_base))
    for packet in packets:
        container.mux(packet)


def _video_packets(video: Any, recipe: Recipe, tick: Fraction) -> Iterator[Any]:
    width, height = recipe.size
    stamps = [*recipe.stamps_ms, recipe.stamps_ms[-1] + recipe.last_ms]
    ticks = [round(Fraction(stamp, 1000) / tick) for stamp in stamps]
    lasts = {at: after - at for at, after in pairwise(ticks)}
    for k in range(len(recipe.stamps_ms)):
        frame = av.VideoFrame.from_ndarray(draw(recipe.first_number + k, width, height), format="rgb24")
        frame = frame.reformat(format=recipe.pix_fmt)
        frame.pts, frame.time_base = ticks[k], tick
        yield from _lasting(video.encode(frame), lasts)
    yield from _lasting(video.encode(None), lasts)


def _lasting(packets: list[Any], lasts: dict[int, int]) -> Iterator[Any]:
    """Packets that say how long their pictures stay: encoders forget it."""
    for packet in packets:
        packet.duration = lasts.get(packet.pts, packet.duration)
        yield packet


def beeping(recipe: Recipe) -> np.ndarray:
    """float32 (samples,) of the sound from `sound_s[0]` on."""
    rate = recipe.audio_rate_hz
    start, stop = (round(s * rate) for s in recipe.sound_s)
    wave = np.zeros(stop - start, np.float32)
    tone = 0.8 * np.sin(2 * np.pi * _TONE_HZ * np.arange(round(BEEP_S * rate)) / rate).astype(np.float32)
    for beep in recipe.beeps_s:
        at = round(beep * rate) - start
        if at >= 0:
            part = tone[: max(len(wave) - at, 0)]
            wave[at : at + len(part)] = part
    return wave


def _audio_packets(audio: Any, recipe: Recipe) -> Iterator[Any]:
    """One encoder for each run of sound between gaps: encoders close gaps or fill them as they like."""
    rate, wave = recipe.audio_rate_hz, beeping(recipe)
    context = audio.codec_context
    context.open()
    step = context.frame_size or 1024
    kind, channels = context.format, context.layout.nb_channels
    for at in range(0, len(wave), step):
        time_s = recipe.sound_s[0] + at / rate
        if any(a <= time_s < b for a, b in recipe.gaps_s):
            continue
        part = wave[at : at + step]
        plain = av.AudioFrame.from_ndarray(np.stack([part] * channels), format="fltp", layout=recipe.layout)
        plain.sample_rate = rate
        for frame in av.AudioResampler(format=kind, layout=recipe.layout, rate=rate).resample(plain):
            frame.pts, frame.time_base = round(recipe.sound_s[0] * rate) + at, Fraction(1, rate)
            yield from audio.encode(frame)
    yield from audio.encode(None)


def remux(
    source: Path,
    target: Path,
    *,
    shift_s: float = 0.0,
    audio_shift_s: float | None = None,
    from_s: float = 0.0,
    mux: dict[str, str] | None = None,
) -> None:
    """Copy packets with their stamps shifted, from the last key frame at or before `from_s` on.

    What `ffmpeg -ss T -c copy` does: an mp4 gets an edit list that leaves out what lies before zero.
    """
    with av.open(str(source)) as read, av.open(str(target), "w", options=mux or {}) as write:
        to = {stream.index: write.add_stream_from_template(stream) for stream in read.streams}
        packets: list[Any] = [packet for packet in read.demux() if packet.dts is not None and packet.size]
        keys = [
            p for p in packets if p.stream.type == "video" and p.is_keyframe and p.pts * p.time_base <= from_s + 1e-6
        ]
        first = packets.index(keys[-1])
        for packet in packets[first:]:
            audio = packet.stream.type == "audio"
            if audio and packet.pts * packet.time_base < from_s - 0.05:
                continue
            seconds = audio_shift_s if audio and audio_shift_s is not None else shift_s
            shift = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = to[packet.stream.index]
            write.mux(packet)


def set_edits(path: Path, track: int, edits: list[tuple[float, float | None]], duration_s: float) -> None:
    """Give a track (by order) of an mp4 whose index comes last an edit list: (how long, from where in the media).

    None stands for an empty edit. `duration_s` is what the movie then lasts.
    """
    data = path.read_bytes()
    at = next(start for kind, start, _ in _boxes(data, 0, len(data)) if kind == b"moov")
    moov = _with_edits(data[at:], track, edits, duration_s)
    path.write_bytes(data[:at] + moov)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big") or end - start
        if size == 1:
            size = int.from_bytes(data[start + 8 : start + 16], "big")
        yield data[start + 4 : start + 8], start, start + size
        start += size


def _with_edits(moov: bytes, track: int, edits: list[tuple[float, float | None]], duration_s: float) -> bytes:
    parts, seen, movie_scale = [], 0, 1000
    for kind, start, end in _boxes(moov, 8, len(moov)):
        part = bytearray(moov[start:end])
        if kind == b"mvhd":  # version 0: the time scale at 20, the duration at 24
            movie_scale = int.from_bytes(part[20:24], "big")
            part[24:28] = struct.pack(">I", round(duration_s * movie_scale))
        if kind == b"trak":
            if seen == track:
                part = bytearray(_edited_track(bytes(part), edits, movie_scale, duration_s))
            seen += 1
        parts.append(bytes(part))
    return _box(b"moov", b"".join(parts))


def _edited_track(trak: bytes, edits: list[tuple[float, float | None]], movie_scale: int, duration_s: float) -> bytes:
    parts = []
    mdhd = trak.index(b"mdhd")
    media_scale = int.from_bytes(trak[mdhd + 16 : mdhd + 20], "big")
    entries = b"".join(
        struct.pack(">IiI", round(long * movie_scale), -1 if at is None else round(at * media_scale), 1 << 16)
        for long, at in edits
    )
    elst = _box(b"elst", struct.pack(">II", 0, len(edits)) + entries)
    for kind, start, end in _boxes(trak, 8, len(trak)):
        part = bytearray(trak[start:end])
        if kind == b"tkhd":
            part[28:32] = struct.pack(">I", round(duration_s * movie_scale))
        if kind != b"edts":
            parts.append(bytes(part))
        if kind == b"tkhd":
            parts.append(_box(b"edts", elst))
    return _box(b"trak", b"".join(parts))


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the display matrix (a, b, c, d) of the first track that has a picture."""
    data = path.read_bytes()
    upright = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    a, b, c, d = (v << 16 for v in matrix)
    turned = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
