"""Name what is seen and heard at each moment straight from the towers' features, by linear heads that are thrown away.

A small model's towers learn what every feature of a clip holds (colours) long before what only all of a moment's
features hold together (shapes). These heads tell them what will be asked for.
"""

# B = rows, S = moments of a clip, N = features, D = model width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from omni_model.batch import Batch, Encoded
from omni_model.sequence import Kind


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one moment of a clip shows and sounds like, as numbers of words."""

    start_s: float
    end_s: float
    visual: tuple[int, ...]
    """One number a visual question, such as colour and shape."""
    audio: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Words:
    """How many words there are for each question."""

    visual: tuple[int, ...]
    audio: tuple[int, ...]


class Perception(nn.Module):
    """One linear head a question, on the mean of a moment's features."""

    def __init__(self, width: int, words: Words) -> None:
        super().__init__()
        self.visual = nn.ModuleList(nn.Linear(width, count) for count in words.visual)
        self.audio = nn.ModuleList(nn.Linear(width, count) for count in words.audio)

    def forward(self, encoded: Encoded, batch: Batch, shown: Sequence[Sequence[Shown]]) -> torch.Tensor:
        """Mean cross-entropy over moments and questions; zero for a batch without moments."""
        moments = [(row, moment) for row, of_row in enumerate(shown) for moment in of_row]
        if not moments:
            return encoded.visual_ND.sum() * 0.0
        device = encoded.visual_ND.device
        row_S = torch.tensor([row for row, _ in moments], device=device)
        span_S2 = torch.tensor([(moment.start_s, moment.end_s) for _, moment in moments], device=device)
        visual_SD = _means(encoded.visual_ND, Kind.VISUAL, batch, row_S, span_S2)
        audio_SD = _means(encoded.audio_ND, Kind.AUDIO, batch, row_S, span_S2)
        wanted_visual = torch.tensor([moment.visual for _, moment in moments], device=device)
        wanted_audio = torch.tensor([moment.audio for _, moment in moments], device=device)
        terms = [F.cross_entropy(head(visual_SD), wanted_visual[:, i]) for i, head in enumerate(self.visual)]
        terms += [F.cross_entropy(head(audio_SD), wanted_audio[:, i]) for i, head in enumerate(self.audio)]
        return torch.stack(terms).mean()


def _means(
    features_ND: torch.Tensor, kind: Kind, batch: Batch, row_S: torch.Tensor, span_S2: torch.Tensor
) -> torch.Tensor:
    """Mean feature of every moment: (S, D)."""
    inside_SL = batch.within(kind, row_S, span_S2 - 1e-4)
    moment_N, position_N = inside_SL.nonzero(as_tuple=True)
    features = features_ND[batch.source_BL[row_S[moment_N], position_N]]
    sums_SD = features.new_zeros(len(row_S), features.shape[1]).index_add(0, moment_N, features)
    return sums_SD / inside_SL.sum(1, keepdim=True)
