"""The module that training wraps: a backbone and a method, from a batch to named losses."""

from __future__ import annotations

import torch
from torch import nn

from omni_model.backbone import Backbone
from omni_model.batch import Batch
from omni_model.heads import Heads
from omni_model.losses import learned_positions, text_loss
from omni_model.methods.base import Method
from omni_model.sequence import Kind
from omni_model.unroll import unroll


class Learner(nn.Module):
    """Backbone, the method's heads, and the weighted sum of its losses (LatentOmni Eq. 7)."""

    def __init__(self, backbone: nn.Module, method: Method) -> None:
        super().__init__()
        self.backbone: Backbone = backbone  # type: ignore[assignment]
        self.method = method
        self.heads: Heads = method.build_heads(self.backbone.width)
        self._progress = 0.0

    def begin_step(self, step: int, total_steps: int) -> None:
        """Tell which optimizer step comes, counted from 0, and of how many.

        What changes in the course of training is computed from these two alone, so resuming has nothing to restore.
        """
        self._progress = min(1.0, step / max(1, total_steps - 1))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named scalars: `loss` with gradient, the raw terms without, and two counts: `tokens`, the positions that are
        somebody's, and `positions`, with the padding."""
        outcome = unroll(
            self.backbone,
            self.heads.feedback,
            batch,
            self.method.unroll,
            training=self.training,
            progress=self._progress,
        )
        learned, wanted = learned_positions(batch.labels_BL)
        logits = self.backbone.logits(outcome.hidden_BLD[:, :-1][learned])
        terms = {"text": text_loss(logits, wanted), **self.method.losses(self.heads, outcome, batch)}
        weights = {"text": 1.0, **self.method.weights}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return {
            "loss": loss,
            **{name: term.detach() for name, term in terms.items()},
            "tokens": (batch.kinds_BL != Kind.PAD).sum(),
            "positions": torch.tensor(batch.kinds_BL.numel(), device=batch.kinds_BL.device),
        }
