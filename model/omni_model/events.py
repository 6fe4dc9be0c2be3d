"""What decoding records: every generated position in order, latents as the vectors that were fed."""

# B = rows, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

EventType = Literal["token", "latent", "forced"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One generated position. Forced tokens have no log-probability: nobody chose them."""

    type: EventType
    position_ids: tuple[int, int, int]
    token: int | None = None
    vector: torch.Tensor | None = None
    """float (D,): what the slot was fed; recorded, so that scoring never has to make it again."""
    logp: float | None = None
    phase: int = -1
    """Of latents, their trigger and their stop: which phase, from 0."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one row generated."""

    events: tuple[Event, ...]
    finish_reason: Literal["stop", "length"]

    @property
    def tokens(self) -> list[int]:
        """Words and triggers the model chose, without the end of turn."""
        return [e.token for e in self.events if e.type == "token" and e.token is not None]

    @property
    def latent_steps(self) -> int:
        """Latent slots fed, over all phases."""
        return sum(e.type == "latent" for e in self.events)

    def latents(self, phase: int) -> torch.Tensor:
        """float (K, D): the vectors of one phase; (0, 0) where it has no slots."""
        vectors = [e.vector for e in self.events if e.type == "latent" and e.phase == phase and e.vector is not None]
        return torch.stack(vectors) if vectors else torch.zeros(0, 0)


LatentOverride = Callable[[int, int, torch.Tensor], torch.Tensor]
"""(phase, slot, own vectors (B, D)) to the vectors that are fed instead, for probes; rows elsewhere are ignored."""
