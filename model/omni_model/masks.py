"""Who may see whom: one rule, used by training on whole sequences and by decoding on single positions."""

# B = rows, Q = queries, K = keys.

from __future__ import annotations

from dataclasses import dataclass

import torch

from omni_model.method_options import Bottleneck
from omni_model.sequence import Kind


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the rule needs to know about positions: each tensor has shape (B, n)."""

    index: torch.Tensor
    """Order in the sequence; -1 for padding."""
    kinds: torch.Tensor
    after_trigger: torch.Tensor
    """Whether the position stands at or after the row's first trigger."""
    blocks: torch.Tensor

    def take(self, index_BN: torch.Tensor) -> Seen:
        """The positions at `index_BN` (−1 for none) of every row."""
        safe, none = index_BN.clamp(min=0), index_BN < 0
        return Seen(
            index=torch.where(none, -1, self.index.gather(1, safe)),
            kinds=torch.where(none, int(Kind.PAD), self.kinds.gather(1, safe)),
            after_trigger=self.after_trigger.gather(1, safe),
            blocks=self.blocks.gather(1, safe),
        )


def look_at(kinds_BL: torch.Tensor, blocks_BL: torch.Tensor) -> Seen:
    """Describe the positions of whole sequences."""
    order = torch.arange(kinds_BL.shape[1], device=kinds_BL.device).expand_as(kinds_BL)
    return Seen(
        index=torch.where(kinds_BL == Kind.PAD, -1, order),
        kinds=kinds_BL,
        after_trigger=(kinds_BL == Kind.TRIGGER).cumsum(1) > 0,
        blocks=blocks_BL,
    )


def allowed(
    query: Seen, key: Seen, *, bottleneck: Bottleneck, training: bool, hide_latents: bool = False
) -> torch.Tensor:
    """bool (B, Q, K): may the query see the key? Order, not position ids, decides causality.

    With `hide_latents` nothing but latent slots sees latent slots: a probe, for any bottleneck. A padding query sees
    nothing; callers let it see itself, because softmax over nothing is undefined.
    """
    # Tensors of B x Q x K are large: each further one is folded in place. A padding key comes after every query.
    last = torch.iinfo(key.index.dtype).max
    k_index = torch.where(key.index < 0, last, key.index)
    rule = k_index[:, None, :] <= query.index[:, :, None]
    same_block = key.blocks[:, None, :] == query.blocks[:, :, None]
    rule &= same_block.logical_or_((key.blocks == 0)[:, None, :])
    if bottleneck == "answer" or bottleneck == "strict" or (bottleneck == "published" and training):
        _block(rule, query, key, strict=bottleneck == "strict")
    if hide_latents:
        rule &= _latent(query)[:, :, None] | ~_latent(key)[:, None, :]
    return rule


def _latent(seen: Seen) -> torch.Tensor:
    return (seen.kinds == Kind.LATENT_VISUAL) | (seen.kinds == Kind.LATENT_AUDIO)


def _block(rule_BQK: torch.Tensor, query: Seen, key: Seen, *, strict: bool) -> None:
    media_key = (key.kinds == Kind.VISUAL) | (key.kinds == Kind.AUDIO)
    looking = _latent(query) | (query.kinds == Kind.TRIGGER)
    words_after = query.after_trigger & ~looking
    if not strict:
        rule_BQK &= ~words_after[:, :, None] | ~media_key[:, None, :]
        return
    media_query = (query.kinds == Kind.VISUAL) | (query.kinds == Kind.AUDIO)
    words = ~(looking | media_query)
    rule_BQK &= ~words[:, :, None] | ~media_key[:, None, :]
    rule_BQK &= ~words_after[:, :, None] | (key.kinds != Kind.TRIGGER)[:, None, :]


def with_self(rule_BLL: torch.Tensor) -> torch.Tensor:
    """Let padding rows see themselves, for square masks."""
    length = rule_BLL.shape[-1]
    return rule_BLL | torch.eye(length, dtype=torch.bool, device=rule_BLL.device)
