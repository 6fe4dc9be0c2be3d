"""Norm-weighted pooling: many features to a few, loud ones counting more (LatentOmni, anchors)."""

# N = features, m = pooled length, D = width.

from __future__ import annotations

import torch
import torch.nn.functional as F

_EPSILON = 1e-6


def norm_weighted_pool(x_ND: torch.Tensor, length: int) -> torch.Tensor:
    """Pool features along their token order into `length` rows: (N, D) to (length, D), in float32.

    Bin j covers tokens floor(jN/m) up to ceil((j+1)N/m); within a bin the weights are the squared norms plus 1e-6.
    Where there are no more features than rows, rows are interpolated linearly; no features give zeros.
    """
    x = x_ND.float()
    if len(x) == 0:
        return x.new_zeros(length, x.shape[1])
    if len(x) <= length:
        return F.interpolate(x.T[None], size=length, mode="linear", align_corners=False)[0].T
    energy_N1 = x.square().sum(-1, keepdim=True) + _EPSILON
    # A ratio of two adaptive means over the same bins is the weighted mean, the bin sizes cancelling.
    weighted = F.adaptive_avg_pool1d((energy_N1 * x).T[None], length)[0].T
    total = F.adaptive_avg_pool1d(energy_N1.T[None], length)[0].T
    return weighted / total
