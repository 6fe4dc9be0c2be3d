"""Clips that several questions share are run once: the rows of a batch then go on from the same keys and values."""

# B = rows, C = clips, L = positions, N = positions of the longest shared beginning, M = of the longest rest,
# D = model width.

from __future__ import annotations

import torch

from omni_model.batch import Batch
from omni_model.masks import Seen
from omni_model.sequence import Kind
from omni_model.slots import gather, index_range, take_positions
from omni_model.stream import Stream


def feed_rows(stream: Stream, batch: Batch, inputs_BLD: torch.Tensor, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """Feed a whole batch: what rows share once for each clip, then the rest of every row.

    Returns the positions of that rest, int64 (B, M) with -1 as padding, and the hidden states there (B, M, D).
    """
    start_B = feed_shared(stream, batch, inputs_BLD, seen)
    rest_BM = index_range(start_B, (batch.kinds_BL != Kind.PAD).sum(1))
    positions = take_positions(batch.position_ids_3BL, rest_BM)
    return rest_BM, stream.feed(gather(inputs_BLD, rest_BM), positions, seen.take(rest_BM))


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
