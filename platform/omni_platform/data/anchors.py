"""Anchors: what a model's own encoders make of the moments that a trajectory looks at.

The ground floor knows no model: it receives a function that builds a `ClipEncoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from omni_platform.schema import Sample


class ClipEncoder(Protocol):
    """Pools a clip's features into `num_visual + num_audio` vectors per time span."""

    @property
    def fingerprint(self) -> str:
        """Changes with the weights and every setting that changes the anchors."""
        ...

    @property
    def num_visual(self) -> int: ...

    @property
    def num_audio(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def prepare_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames in the model's picture size; uint8 (F, H, W, 3) in and out."""
        ...

    def length(self, sample: Sample, *, frames: np.ndarray, sample_fps: float, waveform: np.ndarray | None) -> int:
        """Positions of the sample's whole sequence with this clip, slots included; `frames` are prepared ones.

        Raises `ValueError` for a sample that cannot be laid out (it is quarantined, the others of its clip are not).
        """
        ...

    def anchors(
        self,
        *,
        frames: np.ndarray,
        sample_fps: float,
        waveform: np.ndarray | None,
        spans: list[tuple[float, float]],
    ) -> np.ndarray:
        """float32 (len(spans), num_visual + num_audio, dim), visual rows first.

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
) -> dict[tuple[float, float], np.ndarray]:
    """Anchors (K, D) of each span; equal spans of several questions are encoded once."""
    unique = sorted(set(spans))
    if not unique:
        return {}
    anchors = encoder.anchors(frames=frames, sample_fps=sample_fps, waveform=waveform, spans=unique)
    expected = (len(unique), encoder.num_visual + encoder.num_audio, encoder.dim)
    if anchors.shape != expected or anchors.dtype != np.float32:
        found = f"{anchors.dtype} {anchors.shape}"
        raise TypeError(f"the encoder must return float32 {expected} anchors, it returned {found}")
    if not np.isfinite(anchors).all():
        raise ValueError("the encoder returned anchors that are not finite")
    return dict(zip(unique, anchors, strict=True))
