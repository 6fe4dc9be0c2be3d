"""Norm-weighted pooling: many features to a few, loud ones counting more (LatentOmni, anchors)."""

# N = features, m = pooled length, D = width.

from __future__ import annotations

import torch
import torch.nn.functional as F

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
    energy = x.square().sum(-1, keepdim=True) + _EPSILON
    # A ratio of two adaptive means over the same bins is the weighted mean, the bin sizes cancelling.
    weighted = F.adaptive_avg_pool1d((energy * x).mT, length).mT
    total = F.adaptive_avg_pool1d(energy.mT, length).mT
    return (weighted / total).reshape(*batch, length, width)
