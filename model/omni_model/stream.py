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
from omni_model.fold import Fold
from omni_model.keyvalues import Cache, KeyValues, Scratch
from omni_model.masks import Bottleneck, Seen, allowed


class Stream:
    """A batch being fed piece by piece."""

    def __init__(
        self, backbone: Backbone, *, bottleneck: Bottleneck, training: bool, hide_latents: bool = False
    ) -> None:
        """`hide_latents` keeps words from seeing latent slots (see `allowed`)."""
        self._backbone, self._training, self._hide_latents = backbone, training, hide_latents
        self._bottleneck: Bottleneck = bottleneck
        self._cache = KeyValues()
        self._keys: Seen | None = None
        self._fold: Fold | None = None

    def feed(
        self, inputs_BND: torch.Tensor, position_ids_3BN: torch.Tensor, new: Seen, *, constant: bool = False
    ) -> torch.Tensor:
        """Run new positions over everything fed before; index -1 pads. Returns hidden states (B, N, D).

        Positions of one call see each other by their order. A later call must not feed what an earlier one should
        have seen. `constant` cuts the gradient at the new keys and values.
        """
        piece = self.piece(position_ids_3BN, new)
        self._keys = self._with(piece.seen)
        self._cache = self._cache.copy(hold=torch.Tensor.detach if constant else None)
        return piece.run_over(self._cache, inputs_BND)

    def spread(self, clip_B: torch.Tensor) -> None:
        """Go on with rows of which each begins as row `clip_B[i]` was fed so far: what was fed stays as it is."""
        assert self._keys is not None and self._fold is None
        self._fold = Fold.of(clip_B)

    def piece(self, position_ids_3BN: torch.Tensor, new: Seen) -> Piece:
        """The new positions as something to try out: nothing is fed yet."""
        if self._fold is not None:
            new = self._fold.fold_seen(new)
            position_ids_3BN = torch.stack([self._fold.fold(axis) for axis in position_ids_3BN])
        rule = allowed(
            new,
            self._with(new),
            bottleneck=self._bottleneck,
            training=self._training,
            hide_latents=self._hide_latents,
        )
        count = new.index.shape[1]
        # Softmax over nothing is undefined: padding sees itself, and nobody sees padding.
        own = torch.eye(count, dtype=torch.bool, device=rule.device) & (new.index < 0)[:, :, None]
        rule[:, :, -count:] |= own
        return Piece(
            backbone=self._backbone,
            cache=self._cache,
            position_ids_3BN=position_ids_3BN,
            mask_BNK=rule,
            seen=new,
            fold=self._fold,
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
    """Positions that can be run again and again over the same past, which their keys and values never enter.

    Where rows share clips the tensors here are folded; what goes in and out is not.
    """

    backbone: Backbone
    cache: KeyValues
    position_ids_3BN: torch.Tensor
    mask_BNK: torch.Tensor
    seen: Seen
    fold: Fold | None

    @property
    def count(self) -> int:
        """Positions of a row."""
        return self.mask_BNK.shape[1] // self._width

    def run(self, inputs_BND: torch.Tensor) -> torch.Tensor:
        """All positions at once: hidden states (B, N, D)."""
        return self.run_over(self.cache.copy(), inputs_BND)

    def run_over(self, cache: Cache, inputs_BND: torch.Tensor) -> torch.Tensor:
        """The same over a cache that keeps the keys and values."""
        return self._run(inputs_BND, self.position_ids_3BN, self.mask_BNK, cache)

    def scratch(self) -> Scratch:
        """The past with room for this piece, for `step`."""
        return Scratch(self.cache, room=self.mask_BNK.shape[1])

    def step(self, vector_BD: torch.Tensor, scratch: Scratch) -> torch.Tensor:
        """The next position alone, without a graph: its hidden state (B, D)."""
        at, width = scratch.written, self._width
        ahead = self.mask_BNK.shape[1] - at - width
        hidden = self._run(
            vector_BD[:, None],
            self.position_ids_3BN[:, :, at : at + width],
            self.mask_BNK[:, at : at + width, : self.mask_BNK.shape[2] - ahead],
            scratch,
        )
        scratch.written += width
        return hidden[:, 0]

    @property
    def _width(self) -> int:
        return 1 if self.fold is None else self.fold.width

    def _run(
        self, inputs_BND: torch.Tensor, position_ids_3BN: torch.Tensor, mask_BNK: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        fold = self.fold
        inputs = inputs_BND if fold is None else fold.fold(inputs_BND)
        hidden = self.backbone.run(inputs, position_ids_3BQ=position_ids_3BN, mask_BQK=mask_BNK, cache=cache)
        return hidden if fold is None else fold.unfold(hidden)
