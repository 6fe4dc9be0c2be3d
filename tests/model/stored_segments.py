"""Rows and their segments as training reads them, made by tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omni_platform.schema import FineFeatures, Sample, SegmentFeatures


@dataclass
class Row:
    """A row and its outline at once."""

    sample: Sample
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    anchors: tuple[SegmentFeatures, ...] = ()
    other_anchors: tuple[SegmentFeatures, ...] = ()
    pooled_bins: tuple[int | None, int | None] = (None, None)

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def height_px(self) -> int:
        return self.frames.shape[1]

    @property
    def width_px(self) -> int:
        return self.frames.shape[2]

    @property
    def num_samples(self) -> int | None:
        return None if self.waveform is None else len(self.waveform)


def stored(block_SKD: np.ndarray, num_visual: int) -> tuple[SegmentFeatures, ...]:
    """Segments whose anchors for as many slots are exactly the given ones."""
    return tuple(
        SegmentFeatures(visual=_as_is(block_KD[:num_visual]), audio=_as_is(block_KD[num_visual:]))
        for block_KD in block_SKD
    )


def _as_is(values_ND: np.ndarray) -> FineFeatures:
    weights = np.square(values_ND).sum(-1).astype(np.float32)
    return FineFeatures(values=values_ND, weights=weights, num_features=len(values_ND), num_bins=64)
