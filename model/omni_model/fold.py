"""Rows about one clip folded into one sequence: the clip's keys and values then exist once for all rows that read them.

Position n of row r of a clip stands at place n R + r behind the clip. Rows are blocks that do not see each other.
"""

# B = rows, C = clips, R = rows of a clip at most, N = positions, D = anything that stands at a position.

from __future__ import annotations

from dataclasses import dataclass

import torch

from omni_model.masks import Seen
from omni_model.sequence import Kind


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Which row of the batch stands where."""

    row_CR: torch.Tensor
    """int64: a row, or B (the spare one) where a clip has fewer rows than another."""
    place_B: torch.Tensor
    """int64: where row b stands in `row_CR`, flattened."""

    @classmethod
    def of(cls, clip_B: torch.Tensor) -> Fold:
        """Fold rows by the clip that each is about."""
        same_BB = clip_B[:, None] == clip_B[None, :]
        rank_B = same_BB.tril(-1).sum(1)
        num_clips, width = int(clip_B.max()) + 1, int(rank_B.max()) + 1
        place_B = clip_B * width + rank_B
        row_CR = torch.full((num_clips * width,), len(clip_B), device=clip_B.device)
        row_CR[place_B] = torch.arange(len(clip_B), device=clip_B.device)
        return cls(row_CR=row_CR.view(num_clips, width), place_B=place_B)

    @property
    def width(self) -> int:
        """Places of one position: R."""
        return self.row_CR.shape[1]

    def fold(self, x_BN: torch.Tensor, spare: float = 0) -> torch.Tensor:
        """(B, N, ...) to (C, N R, ...); places of no row get the spare value."""
        clips, width = self.row_CR.shape
        filled = torch.cat([x_BN, x_BN.new_full((1, *x_BN.shape[1:]), spare)])
        laid = filled.index_select(0, self.row_CR.flatten()).unflatten(0, (clips, width))
        return laid.transpose(1, 2).flatten(1, 2)

    def unfold(self, x_CND: torch.Tensor) -> torch.Tensor:
        """The inverse: (C, N R, D) to (B, N, D)."""
        laid = x_CND.unflatten(1, (-1, self.width)).transpose(1, 2).flatten(0, 1)
        return laid.index_select(0, self.place_B)

    def fold_seen(self, seen: Seen) -> Seen:
        """What the mask rule needs to know, folded; row r of a clip is block r + 1."""
        index = self.fold(seen.index, -1)
        rank = torch.arange(1, self.width + 1, device=index.device).repeat(index.shape[1] // self.width)
        return Seen(
            index=index,
            kinds=self.fold(seen.kinds, int(Kind.PAD)),
            after_trigger=self.fold(seen.after_trigger, False),
            blocks=rank.expand_as(index),
        )
