"""Clips that several questions share are run once: the rows of a batch then go on from the same keys and values."""

# B = rows, C = clips, L = positions, N = positions of the longest shared beginning, D = model width.

from __future__ import annotations

import torch

from omni_model.batch import Batch
from omni_model.masks import Seen
from omni_model.slots import gather, index_range, take_positions
from omni_model.stream import Stream


def feed_shared(stream: Stream, batch: Batch, inputs_BLD: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Feed what rows have in common, once for each clip.

    Returns int64 (B,): the position at which each row goes on, 0 where it shares nothing. Equal to feeding every row
    alone, because attention is told the order of keys and not where they lie.
    """
    shared = batch.shared
    if shared is None:
        return torch.zeros(len(inputs_BLD), dtype=torch.long, device=inputs_BLD.device)
    first_C = shared.first_C
    index_CN = index_range(torch.zeros_like(shared.lengths_C), shared.lengths_C)
    beginnings = Seen(**{name: value[first_C] for name, value in vars(seen).items()})
    stream.feed(
        gather(inputs_BLD[first_C], index_CN),
        take_positions(batch.position_ids_3BL[:, first_C], index_CN),
        beginnings.take(index_CN),
    )
    stream.spread(shared.clip_B)
    return shared.lengths_C[shared.clip_B]
