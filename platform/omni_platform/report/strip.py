"""A clip at a glance: a strip of its frames as one small JPEG, and the outline of its sound."""

# F = frames, H, W = height and width in pixels, N = audio samples.

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib.image
import numpy as np

_MAX_HEIGHT_PX = 112


def draw_strip(frames: np.ndarray, *, sample_fps: float, duration_s: float, num_cells: int) -> bytes:
    """JPEG of the frames that are on at the middle of each of `num_cells` equal stretches, from left to right.

    `frames` is uint8 (F, H, W, 3); before the first frame and after the last these two stand.
    """
    middles_s = (np.arange(num_cells) + 0.5) * duration_s / num_cells
    shown = np.minimum((middles_s * sample_fps).astype(int), len(frames) - 1)
    strip = np.concatenate([_shrink(frames[f]) for f in shown], axis=1)
    picture = io.BytesIO()
    matplotlib.image.imsave(picture, strip, format="jpeg", pil_kwargs={"quality": 85})
    return picture.getvalue()


def outline(waveform: np.ndarray, num_columns: int) -> np.ndarray:
    """Loudest sample of each of `num_columns` equal stretches, as a share of the clip's loudest: float (columns,)."""
    edges = np.linspace(0, len(waveform), num_columns + 1).astype(int)
    peaks = np.asarray([np.abs(waveform[a : max(b, a + 1)]).max(initial=0.0) for a, b in pairwise(edges)])
    return peaks / max(float(peaks.max(initial=0.0)), 1e-9)


def _shrink(frame: np.ndarray) -> np.ndarray:
    """Means over squares, so that no picture is taller than the page shows it."""
    size = -(-frame.shape[0] // _MAX_HEIGHT_PX)
    height, width = frame.shape[0] // size, frame.shape[1] // size
    squares = frame[: height * size, : width * size].reshape(height, size, width, size, 3)
    return squares.mean((1, 3)).astype(np.uint8)
