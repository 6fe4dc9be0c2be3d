"""Attention of the towers over all sequences of a batch at once.

The stock towers lay all clips one after the other and, without a flash kernel, attend to one sequence at a time: some
thousand small kernels a step, which a GPU waits for longer than it computes. This one is given to them by the stock
registry and computes the same in one call.
"""

# S = sequences, T = their positions in all, M = positions of the longest, H = heads, E = width of a head.

from __future__ import annotations

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
    max_length_q: int,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Every position attends to its own sequence: (1, H, T, E) each to (1, T, H, E).

    `cu_seq_lens_q` (S + 1,) says where sequences begin; shorter ones are padded for the call.
    """
    heads, total, width = query.shape[1:]
    starts_S, sequences = cu_seq_lens_q[:-1, None], len(cu_seq_lens_q) - 1
    if sequences * max_length_q == total:
        alike = (x[0].unflatten(1, (sequences, max_length_q)).transpose(0, 1) for x in (query, key, value))
        out_SHME = F.scaled_dot_product_attention(*alike, dropout_p=dropout, scale=scaling)
        return out_SHME.transpose(1, 2).reshape(1, total, heads, width), None
    index_SM = starts_S + torch.arange(max_length_q, device=query.device)
    there_SM = index_SM < cu_seq_lens_q[1:, None]
    place_SM = torch.where(there_SM, index_SM, 0)
    padded = (x[0][:, place_SM].transpose(0, 1) for x in (query, key, value))
    out_SHME = F.scaled_dot_product_attention(
        *padded, attn_mask=there_SM[:, None, None], dropout_p=dropout, scale=scaling
    )
    return out_SHME.transpose(1, 2)[there_SM][None], None


AttentionInterface.register(TOWER_ATTENTION, attend)
