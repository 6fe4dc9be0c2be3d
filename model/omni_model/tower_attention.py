"""Attention of the towers over all sequences of one length at once.

The stock towers lay all clips one after the other and, without a flash kernel, attend to one sequence at a time: some
thousand small kernels a step, which a GPU waits for longer than it computes. This one is given to them by the stock
registry and computes the same in one call for each length.
"""

# S = sequences of one length M, T = positions of all sequences, H = heads, E = width of a head.

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

TOWER_ATTENTION = "all_at_once_as_flash"
"""The stock towers hand over where sequences begin to any attention that has `flash` in its name."""


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Every position attends to its own sequence: (1, H, T, E) each to (1, T, H, E).

    `cu_seq_lens_q` (S + 1,) says where sequences begin. Those of one length are one call: nothing is padded, because
    one large picture among many small ones would make all of them large.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for sequence, length in enumerate(cu_seq_lens_q.diff().tolist()):
        by_length[length].append(sequence)
    places, outs = [], []
    for length, sequences in by_length.items():
        starts_S = cu_seq_lens_q[:-1][torch.tensor(sequences, device=query.device)]
        place_SM = starts_S[:, None] + torch.arange(length, device=query.device)
        alike = (x[0][:, place_SM].transpose(0, 1) for x in (query, key, value))
        out_SHME = F.scaled_dot_product_attention(*alike, dropout_p=dropout, scale=scaling)
        places.append(place_SM.flatten())
        outs.append(out_SHME.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)[torch.cat(places).argsort()][None], None


AttentionInterface.register(TOWER_ATTENTION, attend)
