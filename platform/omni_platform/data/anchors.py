"""Segments: what a model's own encoders make of the moments that a trajectory refers to.

The platform knows no model: it receives a function that builds a `ClipEncoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from omni_platform.schema import FineFeatures, Sample, SegmentFeatures


class ClipEncoder(Protocol):
    """Encodes time spans of a clip, to be stored for any number of slots."""

    @property
    def fingerprint(self) -> str:
        """Changes with the weights and every setting that changes what is stored of a segment."""
        ...

    @property
    def dim(self) -> int: ...

    def prepare_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames in the model's picture size; uint8 (F, H, W, 3) in and out."""
        ...

    def length(self, sample: Sample, *, frames: np.ndarray, sample_fps: float, waveform: np.ndarray | None) -> int:
        """Positions of the sample's clip and words, no method's slots among them; `frames` are prepared ones.

        Raises `ValueError` for a sample that cannot be laid out (it is quarantined, the others of its clip are not).
        """
        ...

    def segments(
        self,
        *,
        frames: np.ndarray,
        sample_fps: float,
        waveform: np.ndarray | None,
        spans: list[tuple[float, float]],
    ) -> Sequence[SegmentFeatures]:
        """One a span, `dim` wide.

        `frames` are prepared ones. Raises `ValueError` for a clip that it cannot encode (it is quarantined);
        any other error ends the job.
        """
        ...


BuildEncoder = Callable[[], ClipEncoder]
"""Called once in each actor; must pickle by reference (a module's function, or functools.partial of one)."""


def encode_spans(
    encoder: ClipEncoder,
    *,
    frames: np.ndarray,
    sample_fps: float,
    waveform: np.ndarray | None,
    spans: list[tuple[float, float]],
) -> dict[tuple[float, float], SegmentFeatures]:
    """The features of each span; equal spans of several questions are encoded once."""
    unique = sorted(set(spans))
    if not unique:
        return {}
    segments = encoder.segments(frames=frames, sample_fps=sample_fps, waveform=waveform, spans=unique)
    if len(segments) != len(unique):
        raise TypeError(f"the encoder must return one segment a span: {len(unique)} spans, {len(segments)} segments")
    for segment in segments:
        _check(segment.visual, encoder.dim)
        _check(segment.audio, encoder.dim)
    return dict(zip(unique, segments, strict=True))


def _check(fine: FineFeatures, dim: int) -> None:
    values, weights = fine.values, fine.weights
    shapes_fit = values.ndim == 2 and values.shape[1] == dim and weights.shape == values.shape[:1]
    if not shapes_fit or values.dtype not in (np.float32, np.float16) or weights.dtype != np.float32:
        raise TypeError(
            f"the encoder must return float32 or float16 (rows, {dim}) features with float32 (rows,) weights, it "
            f"returned {values.dtype} {values.shape} with {weights.dtype} {weights.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(weights).all()):
        raise ValueError("the encoder returned features that are not finite")
