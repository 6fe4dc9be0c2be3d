"""Weights beside the backbone's: the feedback into latent slots and the projections of the sync loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from omni_model.feedback import Feedback, FeedbackKind
from omni_model.pooling import norm_weighted_pool

_MAX_SCALE = 100.0


class SyncHeads(nn.Module):
    """Two projections, one a modality, and a learned inverse temperature that begins at 1 / 0.07."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual, self.audio = _projection(width), _projection(width)
        # One element, not a bare scalar: DeepSpeed cannot send weights without a dimension.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    @property
    def scale(self) -> torch.Tensor:
        """The inverse temperature, at most 100."""
        return self.log_scale.exp().clamp(max=_MAX_SCALE)[0]

    def forward(
        self, visual: Sequence[torch.Tensor], audio: Sequence[torch.Tensor], moments: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Both modalities of every segment, projected and pooled to its moments, and the inverse temperature.

        `visual` and `audio` hold (N, D) a segment; so do the results, with N = the segment's moments. Every weight is
        used once, however many segments there are: workers that share weights must gather them equally often.
        """
        return self._project(self.visual, visual, moments), self._project(self.audio, audio, moments), self.scale

    def _project(
        self, head: nn.Sequential, features: Sequence[torch.Tensor], moments: Sequence[int]
    ) -> list[torch.Tensor]:
        projected = head(torch.cat(list(features)).to(self.log_scale.dtype)).split([len(f) for f in features])
        return [norm_weighted_pool(p_ND, count) for p_ND, count in zip(projected, moments, strict=True)]


class Heads(nn.Module):
    """All that a method trains beside the backbone."""

    def __init__(
        self, width: int, *, feedback: FeedbackKind = "raw", norm_match: bool = False, sync: bool = False
    ) -> None:
        super().__init__()
        self.feedback = Feedback(width, kind=feedback, norm_match=norm_match)
        self.sync = SyncHeads(width) if sync else None


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
