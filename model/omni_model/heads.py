"""Weights beside the backbone's: the feedback into latent slots and the projections of the sync loss."""

from __future__ import annotations

import math

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
        self, visual_ND: torch.Tensor, audio_ND: torch.Tensor, moments: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both modalities projected and pooled to `moments` rows, and the inverse temperature, at most 100.

        All in one forward, so that weights sharded over workers are gathered where they are used.
        """
        dtype = self.log_scale.dtype
        visual_TD = norm_weighted_pool(self.visual(visual_ND.to(dtype)), moments)
        audio_TD = norm_weighted_pool(self.audio(audio_ND.to(dtype)), moments)
        return visual_TD, audio_TD, self.scale


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
