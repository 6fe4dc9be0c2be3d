"""Norm-weighted pooling: many features to a few, loud ones counting more (LatentOmni, anchors).

What is stored of a segment is pooled finely once (`fine_pool`) and to the slots of a method later (`pool_fine`), which
gives what pooling all its features would have given.
"""

# N = features, m = pooled length, D = width, F = fine bins, A = rows of fine features, S = segments, K = slots.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from omni_platform.schema import FineFeatures, SegmentFeatures

_EPSILON = 1e-6


def norm_weighted_pool(x_ND: torch.Tensor, length: int) -> torch.Tensor:
    """Pool features along their token order into `length` rows: (..., N, D) to (..., length, D), in float32.

    Bin j covers tokens floor(jN/m) up to ceil((j+1)N/m); within a bin the weights are the squared norms plus 1e-6.
    Where there are no more features than rows, rows are interpolated linearly; no features give zeros.
    """
    *batch, count, width = x_ND.shape
    if count == 0 or length == 0:
        return x_ND.new_zeros(*batch, length, width, dtype=torch.float32)
    x = x_ND.float().reshape(-1, count, width)
    if count <= length:
        pooled = F.interpolate(x.mT, size=length, mode="linear", align_corners=False).mT
        return pooled.reshape(*batch, length, width)
    energy = _energy(x)
    # A ratio of two adaptive means over the same bins is the weighted mean, the bin sizes cancelling.
    weighted = F.adaptive_avg_pool1d((energy * x).mT, length).mT
    total = F.adaptive_avg_pool1d(energy.mT, length).mT
    return (weighted / total).reshape(*batch, length, width)


def fine_pool(x_ND: torch.Tensor, num_bins: int, *, dtype: str = "float32") -> FineFeatures:
    """Features (N, D) as they are up to 2 F - 1 of them, else pooled between the edges of F bins (see `FineFeatures`).

    Raises `ValueError` for a value that `dtype`, float32 or float16, cannot hold.
    """
    x, count = x_ND.float().cpu(), len(x_ND)
    weights = _energy(x)[:, 0]
    if count >= 2 * num_bins:
        edges = _fine_edges(count, num_bins)
        row_N = torch.searchsorted(edges, torch.arange(count), right=True) - 1
        of_row = torch.zeros(len(edges) - 1).index_add(0, row_N, weights)
        sums = torch.zeros(len(of_row), x.shape[1]).index_add(0, row_N, weights[:, None] * x)
        x, weights = sums / of_row[:, None], of_row
    with np.errstate(over="ignore"):  # looked for below
        values = x.numpy().astype(dtype)
    if not np.isfinite(values).all():
        raise ValueError(f"a feature of the towers is not finite as {dtype}")
    return FineFeatures(values=values, weights=weights.numpy(), num_features=count, num_bins=num_bins)


def pool_fine(fine: FineFeatures, length: int) -> torch.Tensor:
    """What `norm_weighted_pool` makes of the features that went into `fine`: float32 (length, D).

    Exact where features were kept as they are; up to rounding where `length` divides the fine bins. Raises `ValueError`
    for another length of pooled features.
    """
    values = torch.from_numpy(fine.values).float()
    if len(values) == fine.num_features or length == 0:
        return norm_weighted_pool(values, length)
    count, bins = fine.num_features, fine.num_bins
    check_bins(bins, length)
    edges, j = _fine_edges(count, bins), torch.arange(length)
    first = torch.searchsorted(edges, j * count // length)
    last = torch.searchsorted(edges, -(-(j + 1) * count // length))
    row = torch.arange(len(values))
    weights_mA = ((row >= first[:, None]) & (row < last[:, None])) * torch.from_numpy(fine.weights)
    return (weights_mA @ values) / weights_mA.sum(1, keepdim=True)


def check_bins(bins: int, length: int) -> None:
    """`ValueError` where features that were pooled in so many bins cannot be pooled to `length` rows."""
    if length and bins % length:
        raise ValueError(
            f"segments with more than {2 * bins - 1} features are stored in {bins} bins, which give "
            f"{', '.join(str(n) for n in range(1, bins + 1) if bins % n == 0)} slots and not {length}; "
            f"preprocess again with a multiple of {length} bins (encoder.visual_bins, encoder.audio_bins)"
        )


def pool_segments(segments: Sequence[SegmentFeatures], *, num_visual: int, num_audio: int, width: int) -> torch.Tensor:
    """Anchors of stored segments for the slots of a method: float32 (S, K, D), visual slots first (LatentOmni, 1.4).

    Raises `ValueError` where the features are not `width` wide, and as `pool_fine` does.
    """
    for segment in segments:
        found = segment.visual.values.shape[1]
        if found != width:
            raise ValueError(
                f"the anchors are {found} wide and the model {width}: they were made by another model's towers; "
                "preprocess again with encoder.model_name_or_path of the model that is trained"
            )
    pooled = [torch.cat([pool_fine(s.visual, num_visual), pool_fine(s.audio, num_audio)]) for s in segments]
    return torch.stack(pooled) if pooled else torch.zeros(0, num_visual + num_audio, width)


def _energy(x: torch.Tensor) -> torch.Tensor:
    """Weights of features (..., N, D): (..., N, 1)."""
    return x.square().sum(-1, keepdim=True) + _EPSILON


def _fine_edges(count: int, bins: int) -> torch.Tensor:
    """Where a bin of `bins` over `count` features begins or ends, ascending: int64 (rows + 1,)."""
    i = torch.arange(bins + 1)
    return torch.cat([i * count // bins, -(-i * count // bins)]).unique()
