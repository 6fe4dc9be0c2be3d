"""Feed positions to the backbone in any grouping over a cache: the one engine under training rollouts and decoding.

Rows of a batch have their triggers at different places, so a step may feed position 40 of one row beside position 55
of another, or nothing at all for a third. That is exact, because attention is told the order of every cached key, and
position ids are explicit: where a key lies in the cache does not matter.
"""

# B = rows, N = newly fed positions, K = cached plus new positions, L = whole sequence, D = model width.

from __future__ import annotations

from dataclasses import fields, replace

import torch
from transformers import DynamicCache

from omni_model.backbone import Backbone
from omni_model.masks import Bottleneck, Seen, allowed


class Stream:
    """A batch being fed piece by piece."""

    def __init__(self, backbone: Backbone, *, bottleneck: Bottleneck, training: bool) -> None:
        self._backbone, self._training = backbone, training
        self._bottleneck: Bottleneck = bottleneck
        self._cache = DynamicCache()
        self._keys: Seen | None = None

    def feed(self, inputs_BND: torch.Tensor, position_ids_3BN: torch.Tensor, new: Seen) -> torch.Tensor:
        """Run new positions over everything fed before; index -1 pads. Returns hidden states (B, N, D).

        Positions of one call see each other by their order. A later call must not feed what an earlier one should
        have seen.
        """
        self._keys = new if self._keys is None else _concatenate(self._keys, new)
        rule = allowed(new, self._keys, bottleneck=self._bottleneck, training=self._training)
        count = new.index.shape[1]
        # Softmax over nothing is undefined: padding sees itself, and nobody sees padding.
        own = torch.eye(count, dtype=torch.bool, device=rule.device) & (new.index < 0)[:, :, None]
        rule[:, :, -count:] |= own
        return self._backbone.run(inputs_BND, position_ids_3BQ=position_ids_3BN, mask_BQK=rule, cache=self._cache)


def _concatenate(old: Seen, new: Seen) -> Seen:
    return replace(old, **{f.name: torch.cat([getattr(old, f.name), getattr(new, f.name)], 1) for f in fields(Seen)})
