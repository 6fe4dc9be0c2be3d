"""The sound of a clip: decoded frames placed by their time stamps, gaps kept as silence."""

# Shapes in names: N = audio samples.

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from omni_platform.media.clock import BACK_S, FORWARD_S

_TEAR_S = 0.015
"""Stamps that differ by less from where the samples lead are jitter: rounding of containers, delays of codecs."""


@dataclass(kw_only=True)
class _Run:
    """Samples without a gap."""

    part: int
    start_s: float
    """The time stamp of its first sample."""
    chunks: list[np.ndarray] = field(default_factory=list)
    num_samples: int = 0


class SoundTrack:
    """Collects a track as mono 16-bit samples at one rate, in runs that are placed when the pictures are known.

    Within a run samples follow each other by count, so that small jitter of the stamps tears nothing apart.
    """

    def __init__(self, rate_hz: int, *, rejoins: bool) -> None:
        self._rate_hz, self._rejoins = rate_hz, rejoins
        self._runs: list[_Run] = []
        self._resampler: av.AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None
        self._next_s: float | None = None
        """Where the samples taken so far lead: the time stamp that the next frame should have."""

    @property
    def end_s(self) -> float:
        """The time stamp at which the track ends; 0 without sound."""
        return self._next_s or 0.0

    @property
    def length_s(self) -> float:
        """How long the track lasts by its time stamps."""
        return self._next_s - self._runs[0].start_s if self._runs and self._next_s is not None else 0.0

    def add(self, frame: av.AudioFrame) -> None:
        """The next decoded frame of the track, in the order of the file."""
        if frame.samples <= 0 or frame.sample_rate <= 0:
            return
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        stamp_s = frame.time if frame.pts is not None else self._next_s
        stamp_s = stamp_s if stamp_s is not None else 0.0
        expected_s = self._next_s if self._next_s is not None else stamp_s
        if kind != self._kind or abs(stamp_s - expected_s) > _TEAR_S:
            self._start_run(stamp_s, expected_s)
            self._kind, expected_s = kind, stamp_s
        assert self._resampler is not None
        # The resampler compares stamps of its own; ours say where a run begins.
        frame.pts = None
        self._take(self._resampler.resample(frame))
        self._next_s = expected_s + frame.samples / frame.sample_rate

    def finish(self) -> None:
        """No more frames: empty the resampler."""
        if self._resampler is not None:
            self._take(self._resampler.resample(None))
            self._resampler = None

    def render(self, joints: list[tuple[Fraction, Fraction]], duration_s: float) -> np.ndarray | None:
        """The sound beside the pictures: float32 (N,) of `duration_s`, None where it holds none within the clip.

        `joints` are those of the pictures' clock: the sound of a part lies as its stamps do to those of its pictures.
        """
        wave = np.zeros(round(duration_s * self._rate_hz), np.float32)
        heard, end_s = False, 0.0
        for i, run in enumerate(self._runs):
            if run.part < len(joints):
                stamp_s, place_s = joints[run.part]
                start_s = run.start_s - float(stamp_s - place_s)
            else:  # the pictures have no such joint: the sound continues where it was
                start_s = end_s if i else 0.0
            end_s = start_s + run.num_samples / self._rate_hz
            cursor = round(start_s * self._rate_hz)
            for chunk in run.chunks:
                first, last = max(cursor, 0), min(cursor + len(chunk), len(wave))
                if first < last:
                    np.divide(chunk[first - cursor : last - cursor], 32768.0, out=wave[first:last], casting="unsafe")
                    heard = True
                cursor += len(chunk)
        return wave if heard else None

    def _start_run(self, stamp_s: float, expected_s: float) -> None:
        self.finish()
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=self._rate_hz)
        jump = stamp_s - expected_s
        joined = self._rejoins and (jump <= -BACK_S or jump > FORWARD_S)
        part = (self._runs[-1].part + joined) if self._runs else 0
        self._runs.append(_Run(part=part, start_s=stamp_s))

    def _take(self, frames: list[av.AudioFrame]) -> None:
        run = self._runs[-1]
        for frame in frames:
            # A copy: the frame's memory goes back to FFmpeg.
            chunk = frame.to_ndarray()[0].copy()
            run.chunks.append(chunk)
            run.num_samples += len(chunk)
