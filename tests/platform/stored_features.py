"""Segments as they are stored, made from arrays and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omni_platform.schema import FineFeatures, SegmentFeatures


def segment_of(block_KD: np.ndarray, *, num_visual: int) -> SegmentFeatures:
    """Rows of features as they are stored: the first ones visual, the others audio."""
    parts = block_KD[:num_visual], block_KD[num_visual:]
    visual, audio = (
        FineFeatures(values=p, weights=np.ones(len(p), np.float32), num_features=len(p), num_bins=4) for p in parts
    )
    return SegmentFeatures(visual=visual, audio=audio)


def features_of(segments: Sequence[SegmentFeatures], shape: tuple[int, int] = (3, 3)) -> np.ndarray:
    """The inverse, for several: float32 (S, K, D)."""
    blocks = [np.concatenate([s.visual.values, s.audio.values]) for s in segments]
    return np.stack(blocks) if blocks else np.zeros((0, *shape), np.float32)
