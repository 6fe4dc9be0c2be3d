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
        visual_SD = torch.stack([_mean(encoded.visual_ND, Kind.VISUAL, batch, *at) for at in moments])
        audio_SD = torch.stack([_mean(encoded.audio_ND, Kind.AUDIO, batch, *at) for at in moments])
        wanted_visual = torch.tensor([moment.visual for _, moment in moments])
        wanted_audio = torch.tensor([moment.audio for _, moment in moments])
        terms = [F.cross_entropy(head(visual_SD), wanted_visual[:, i]) for i, head in enumerate(self.visual)]
        terms += [F.cross_entropy(head(audio_SD), wanted_audio[:, i]) for i, head in enumerate(self.audio)]
        return torch.stack(terms).mean()


def _mean(features_ND: torch.Tensor, kind: Kind, batch: Batch, row: int, moment: Shown) -> torch.Tensor:
    times_L = batch.times_s_BL[row]
    inside_L = (batch.kinds_BL[row] == kind) & (times_L >= moment.start_s - 1e-4) & (times_L < moment.end_s - 1e-4)
    return features_ND[batch.source_BL[row, inside_L]].mean(0)
