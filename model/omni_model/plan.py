"""What a laid-out sequence is: every position's token, kind, position ids and label, and the clip it is about."""

# L = positions of one sequence, S = spans (latent phases) of one sequence.

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from omni_model.processing import MERGE, num_audio_tokens

IGNORE = -100
"""Label of a position whose token is not learned."""


class Kind(IntEnum):
    """What stands at a position. Masks, losses and probes speak in kinds, never in token ids."""

    PAD = 0
    TEMPLATE = 1
    MARKER = 2
    VISUAL = 3
    AUDIO = 4
    QUESTION = 5
    TEXT = 6
    TRIGGER = 7
    LATENT_VISUAL = 8
    LATENT_AUDIO = 9
    STOP = 10


@dataclass(frozen=True, kw_only=True)
class Media:
    """One clip ready for the towers, with the clock of its tokens."""

    patches: torch.Tensor
    """float32 (patches, 1176)"""
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    mel: torch.Tensor | None
    """float32 (128, mel frames), or None for a clip without sound"""

    @property
    def num_visual_tokens(self) -> int:
        t, h, w = self.grid_thw
        return t * h * w // MERGE**2

    @property
    def num_audio_tokens(self) -> int:
        return 0 if self.mel is None else num_audio_tokens(self.mel.shape[1])


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """One clip that has been through the towers, with the clock of its tokens."""

    visual_ND: torch.Tensor
    audio_ND: torch.Tensor
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float

    @property
    def num_visual_tokens(self) -> int:
        return len(self.visual_ND)

    @property
    def num_audio_tokens(self) -> int:
        return len(self.audio_ND)


@dataclass(frozen=True, kw_only=True)
class Span:
    """One latent phase: a trigger, then visual and audio slots, then the forced stop."""

    trigger: int
    """Index of the trigger; slot k (1-based) stands at trigger + k."""
    num_visual: int
    num_audio: int
    start_s: float
    end_s: float

    @property
    def num_slots(self) -> int:
        return self.num_visual + self.num_audio


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One laid-out sequence."""

    input_ids: torch.Tensor
    """int64 (L,)"""
    kinds: torch.Tensor
    """int64 (L,) of `Kind`"""
    labels: torch.Tensor
    """int64 (L,): the token itself where it is learned (predicted at L - 1), else IGNORE"""
    position_ids: torch.Tensor
    """int64 (3, L)"""
    source: torch.Tensor
    """int64 (L,): row of the tower output that a visual or audio token takes, else -1"""
    times_s: torch.Tensor
    """float32 (L,): when a visual or audio token begins, else NaN"""
    blocks: torch.Tensor
    """int64 (L,): 0 for the shared prefix; j for the j-th of several questions packed behind it"""
    spans: tuple[Span, ...]
    media: Media | EncodedClip
    prefix_length: int
    """Positions before the question, which other questions about the same clip have too."""
    next_position: int
    """The position id with which a continuation begins."""

    def __len__(self) -> int:
        return len(self.input_ids)
