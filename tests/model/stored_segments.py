"""Segments as they are stored, made from anchors: what tests give to rows."""

from __future__ import annotations

import numpy as np

from omni_platform.schema import FineFeatures, SegmentFeatures


def stored(block_SKD: np.ndarray, num_visual: int) -> tuple[SegmentFeatures, ...]:
    """Segments whose anchors for as many slots are exactly the given ones."""
    return tuple(
        SegmentFeatures(visual=_as_is(block_KD[:num_visual]), audio=_as_is(block_KD[num_visual:]))
        for block_KD in block_SKD
    )


def _as_is(values_ND: np.ndarray) -> FineFeatures:
    weights = np.square(values_ND).sum(-1).astype(np.float32)
    return FineFeatures(values=values_ND, weights=weights, num_features=len(values_ND), num_bins=64)
