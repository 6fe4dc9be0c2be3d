"""Keys and values of what was fed so far: a cache that belongs to whoever feeds, with gradient or without.

A pass over a layer takes the layer's past, joins its new keys and values to it, and puts the whole back. Joining
changes nothing that a second run of the same layer would miss, so activations may be recomputed in the backward pass.
"""

# B = rows, H = heads, N = positions in a layer's past, Q = positions of the pass, E = width of a head.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, each (B, H, N, E)."""


class Cache(Protocol):
    """What a backbone needs of a cache, layer by layer."""

    def past(self, layer: int) -> Pair | None:
        """What earlier passes left, None for nothing."""
        ...

    def join(self, past: Pair | None, new: Pair) -> Pair:
        """What the pass attends to."""
        ...

    def put(self, layer: int, whole: Pair) -> None:
        """Take what `join` made."""
        ...


class KeyValues:
    """Grows by concatenation and keeps the graph. A copy grows by itself and leaves the original alone."""

    def __init__(
        self, layers: Mapping[int, Pair] | None = None, *, hold: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        """`hold` is applied to new keys and values before anybody sees them, to cut gradients."""
        self.layers: dict[int, Pair] = dict(layers or {})
        self._hold = hold

    def copy(self, *, hold: Callable[[torch.Tensor], torch.Tensor] | None = None) -> KeyValues:
        return KeyValues(self.layers, hold=hold)

    def past(self, layer: int) -> Pair | None:
        return self.layers.get(layer)

    def join(self, past: Pair | None, new: Pair) -> Pair:
        keys, values = new if self._hold is None else (self._hold(new[0]), self._hold(new[1]))
        if past is None:
            return keys, values
        return torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)

    def put(self, layer: int, whole: Pair) -> None:
        self.layers[layer] = whole


class Scratch:
    """A copy without gradient and with room for a few positions, which are written over until they are right."""

    def __init__(self, source: KeyValues, *, room: int) -> None:
        self.written = 0
        """Positions of the room that stay; the next pass writes behind them."""
        self._room = room
        self._buffers = {layer: (_roomy(k, room), _roomy(v, room)) for layer, (k, v) in source.layers.items()}

    def past(self, layer: int) -> Pair | None:
        return self._buffers[layer]

    def join(self, past: Pair | None, new: Pair) -> Pair:
        assert past is not None
        start = past[0].shape[2] - self._room + self.written
        stop = start + new[0].shape[2]
        for buffer, fresh in zip(past, new, strict=True):
            buffer[:, :, start:stop] = fresh
        return past[0][:, :, :stop], past[1][:, :, :stop]

    def put(self, layer: int, whole: Pair) -> None:
        """Everything is in place already."""


def _roomy(x_BHNE: torch.Tensor, room: int) -> torch.Tensor:
    rows, heads, _, width = x_BHNE.shape
    return torch.cat([x_BHNE.detach(), x_BHNE.new_zeros(rows, heads, room, width)], 2)
