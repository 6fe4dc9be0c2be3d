"""Presentation times of one stream, made to run forward: time zero is the first picture."""

from __future__ import annotations

from fractions import Fraction

REJOINING = ("mpegts", "mpeg")
"""Demuxers of containers that are joined byte by byte: there a jump of the time stamps is where a new part begins."""
BACK_S = 0.1
"""A step back by so much is such a jump."""
FORWARD_S = 10.0
"""A step ahead by more than this is one too, as FFmpeg has it. In other containers a long hold is a long hold."""


class Clock:
    """Gives every picture of a stream its place in ticks since the first one.

    Edit lists are FFmpeg's work: what reaches this class are true presentation times. Missing time stamps continue
    with the step before, small steps back stand still, and where parts of a transport or program stream were joined
    the next part begins where the last one ended.
    """

    def __init__(self, time_base: Fraction, *, rejoins: bool) -> None:
        self.time_base = time_base
        self.joints: list[tuple[Fraction, Fraction]] = []
        """(time stamp, place) in seconds of the first picture of every part."""
        self._rejoins = rejoins
        self._back, self._forward = (round(Fraction(s) / time_base) for s in (BACK_S, FORWARD_S))
        self._shift = self._at = self._end = self._step = 0

    @property
    def end_s(self) -> float:
        """When the last picture so far leaves the screen, in seconds since the first one."""
        return self._seconds(self._end)

    def place(self, stamp: int | None, duration: int) -> float:
        """Seconds since the first picture, for one with this time stamp and duration (ticks; 0 where unknown)."""
        if not self.joints:
            self._join(stamp or 0, 0)
        at = self._end if stamp is None else stamp + self._shift
        back, forward = self._at - at, at - self._end
        if self._rejoins and (back >= self._back or forward > self._forward):
            self._join(at - self._shift, self._end)
            at = self._end
        at = max(at, self._at)
        step = duration if duration > 0 else (at - self._at) or self._step
        self._at, self._step = at, step
        self._end = max(self._end, at + step)
        return self._seconds(at)

    def _seconds(self, ticks: int) -> float:
        return ticks * self.time_base.numerator / self.time_base.denominator

    def _join(self, stamp: int, place: int) -> None:
        self._shift = place - stamp
        self.joints.append((stamp * self.time_base, place * self.time_base))
