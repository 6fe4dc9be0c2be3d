"""Weights beside the backbone's: the feedback into latent slots and the projections of the sync loss."""

from __future__ import annotations

import math

import torch
from torch import nn

from omni_model.feedback import Feedback, FeedbackKind

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
        self, visual_ND: torch.Tensor, audio_ND: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features of all segments, projected, and the inverse temperature.

        One call takes the segments of a whole batch, and the same number of tensors goes in and comes out however many
        there are: workers that share weights must gather them equally often, forwards and backwards.
        """
        dtype = self.log_scale.dtype
        return self.visual(visual_ND.to(dtype)), self.audio(audio_ND.to(dtype)), self.scale


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
