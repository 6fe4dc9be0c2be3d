"""Feed positions to the backbone in any grouping over a cache: the one engine under training rollouts and decoding.

Rows of a batch have their triggers at different places, so a step may feed position 40 of one row beside position 55
of another, or nothing at all for a third. That is exact, because attention is told the order of every cached key, and
position ids are explicit: where a key lies in the cache does not matter.
"""

# B = rows, N = newly fed positions, K = cached plus new positions, L = whole sequence, D = model width.

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from omni_model.backbone import Backbone
from omni_model.keyvalues import KeyValues, Scratch
from omni_model.masks import Bottleneck, Seen, allowed


class Stream:
    """A batch being fed piece by piece."""

    def __init__(self, backbone: Backbone, *, bottleneck: Bottleneck, training: bool) -> None:
        self._backbone, self._training = backbone, training
        self._bottleneck: Bottleneck = bottleneck
        self._cache = KeyValues()
        self._keys: Seen | None = None

    def feed(
        self, inputs_BND: torch.Tensor, position_ids_3BN: torch.Tensor, new: Seen, *, constant: bool = False
    ) -> torch.Tensor:
        """Run new positions over everything fed before; index -1 pads. Returns hidden states (B, N, D).

        Positions of one call see each other by their order. A later call must not feed what an earlier one should
        have seen. `constant` cuts the gradient at the new keys and values.
        """
        piece = self.piece(position_ids_3BN, new)
        self._keys = self._with(new)
        self._cache = self._cache.copy(hold=torch.Tensor.detach if constant else None)
        return self._backbone.run(
            inputs_BND, position_ids_3BQ=position_ids_3BN, mask_BQK=piece.mask_BNK, cache=self._cache
        )

    def piece(self, position_ids_3BN: torch.Tensor, new: Seen) -> Piece:
        """The new positions as something to try out: nothing is fed yet."""
        rule = allowed(new, self._with(new), bottleneck=self._bottleneck, training=self._training)
        count = new.index.shape[1]
        # Softmax over nothing is undefined: padding sees itself, and nobody sees padding.
        own = torch.eye(count, dtype=torch.bool, device=rule.device) & (new.index < 0)[:, :, None]
        rule[:, :, -count:] |= own
        return Piece(
            backbone=self._backbone, cache=self._cache, position_ids_3BN=position_ids_3BN, mask_BNK=rule, seen=new
        )

    def _with(self, new: Seen) -> Seen:
        old = self._keys
        if old is None:
            return new
        return replace(
            old, **{f.name: torch.cat([getattr(old, f.name), getattr(new, f.name)], 1) for f in fields(Seen)}
        )


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Positions that can be run again and again over the same past, which their keys and values never enter."""

    backbone: Backbone
    cache: KeyValues
    position_ids_3BN: torch.Tensor
    mask_BNK: torch.Tensor
    seen: Seen

    def run(self, inputs_BND: torch.Tensor) -> torch.Tensor:
        """All positions at once: hidden states (B, N, D)."""
        return self.backbone.run(
            inputs_BND, position_ids_3BQ=self.position_ids_3BN, mask_BQK=self.mask_BNK, cache=self.cache.copy()
        )

    def scratch(self) -> Scratch:
        """The past with room for this piece, for `step`."""
        return Scratch(self.cache, room=self.mask_BNK.shape[1])

    def step(self, vector_BD: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """The next position alone, without a graph: its hidden state (B, D)."""
        at = scratch.written
        ahead = self.mask_BNK.shape[1] - at - 1
        hidden = self.backbone.run(
            vector_BD[:, None],
            position_ids_3BQ=self.position_ids_3BN[:, :, at : at + 1],
            mask_BQK=self.mask_BNK[:, at : at + 1, : self.mask_BNK.shape[2] - ahead],
            cache=scratch,
        )
        scratch.written += 1
        return hidden[:, 0]
