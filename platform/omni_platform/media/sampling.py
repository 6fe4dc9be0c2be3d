"""Which of a file's pictures are kept: those on screen at the sampled times, chosen while they come by."""

# Shapes in names: F = sampled frames, H, W = picture in pixels.

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_EARLY_S = 5e-4
"""Containers round time stamps to a millisecond: a picture that is due exactly now may be stamped a little later."""


def sample_times(duration_s: float, *, fps: float, max_frames: int) -> tuple[np.ndarray, float]:
    """Times of the sampled frames (seconds, an even number of them), and their true rate."""
    wanted = max(2, 2 * round(duration_s * fps / 2))
    allowed = max_frames - max_frames % 2
    if wanted > allowed:
        wanted, fps = allowed, allowed / duration_s
    return np.arange(wanted) / fps, fps


def on_screen(starts_s: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """Indices of the pictures on screen at the given times, where picture k starts at `starts_s[k]` (ascending)."""
    return np.clip(np.searchsorted(starts_s, times_s + _EARLY_S, side="right") - 1, 0, len(starts_s) - 1)


class FrameSampler:
    """Keeps the pictures on screen at the times i / rate, of pictures that are offered in order.

    A picture is converted only when it is kept, and only once. Memory is that of the pictures kept.
    """

    def __init__(self, *, rate: float, max_kept: int, expected: int) -> None:
        """`expected` is a guess of the number of pictures kept: room is made for so many to begin with."""
        self._rate, self._max_kept = rate, max_kept
        self._room = min(max_kept, max(2, expected))
        self._kept: np.ndarray | None = None
        self._num_kept = 0
        self._pending: Callable[[], np.ndarray] | None = None

    @property
    def is_full(self) -> bool:
        """Whether no later picture can be kept."""
        return self._num_kept >= self._max_kept

    def offer(self, start_s: float, convert: Callable[[], np.ndarray]) -> None:
        """The picture that comes on screen at `start_s`; `convert` gives it as uint8 (H, W, 3)."""
        self._keep_until(start_s)
        self._pending = convert

    def finish(self, num_frames: int) -> np.ndarray:
        """The pictures at the first `num_frames` times, uint8 (F, H, W, 3); the last one stays on screen."""
        missing = num_frames - self._num_kept
        if missing > 0:
            self._add(missing)
        assert self._kept is not None
        return self._kept[:num_frames]

    def _keep_until(self, start_s: float) -> None:
        # As in `on_screen`: at a sampled time t the new picture is on screen where start_s <= t + _EARLY_S.
        due = self._num_kept
        while due < self._max_kept and due / self._rate + _EARLY_S < start_s:
            due += 1
        if due > self._num_kept:
            self._add(due - self._num_kept)

    def _add(self, times: int) -> None:
        assert self._pending is not None
        picture = self._pending()
        self._pending = lambda: picture
        needed = self._num_kept + times
        if self._kept is None:
            self._room = max(self._room, needed)
            self._kept = np.empty((self._room, *picture.shape), np.uint8)
        elif needed > self._room:
            self._room = max(needed, min(self._max_kept, self._room * 3 // 2))
            # Grows in place: a copy would hold the clip twice.
            self._kept.resize((self._room, *picture.shape), refcheck=False)
        self._kept[self._num_kept : needed] = picture
        self._num_kept = needed
