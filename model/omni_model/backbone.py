"""The four operations every method is written in: embed, encode, run, logits."""

# B = rows, Q = new positions, K = positions in cache plus Q, D = model width, V = vocabulary.

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from omni_model.batch import Encoded, MediaBatch
from omni_model.keyvalues import Cache


class Backbone(Protocol):
    """A language model with towers. Adapters wrap a stock model and never patch it."""

    width: int

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to input vectors (..., D)."""
        ...

    def encode(self, media: MediaBatch) -> Encoded:
        """Clips to input vectors, with gradient where the towers are trainable."""
        ...

    def run(
        self,
        inputs_BQD: torch.Tensor,
        *,
        position_ids_3BQ: torch.Tensor,
        mask_BQK: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Input vectors to last hidden states (B, Q, D) after the final norm; puts keys and values into the cache."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (..., D) to logits (..., V)."""
        ...

    def modules_by_group(self) -> dict[str, nn.Module]:
        """The parts that can be frozen by name: vision, audio, llm."""
        ...
