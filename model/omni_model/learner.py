"""The module that training wraps: a backbone and a method, from a batch to named losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from omni_model.backbone import Backbone
from omni_model.batch import Batch
from omni_model.heads import Heads
from omni_model.losses import Term, learned_positions, text_loss
from omni_model.method_options import TextReduction
from omni_model.methods.base import Method
from omni_model.sequence import Kind
from omni_model.unroll import unroll


class Learner(nn.Module):
    """Backbone, the method's heads, and the weighted sum of its losses (LatentOmni Eq. 7)."""

    def __init__(
        self, backbone: nn.Module, method: Method, *, text_loss_reduction: TextReduction = "token_mean"
    ) -> None:
        super().__init__()
        self._by_sample = text_loss_reduction == "sample_mean"
        self.backbone: Backbone = backbone  # type: ignore[assignment]
        self.method = method
        self.heads: Heads = method.build_heads(self.backbone.width)
        self._progress = 0.0

    def begin_step(self, step: int, total_steps: int) -> None:
        """Tell which optimizer step comes, counted from 0, and of how many.

        What changes in the course of training is computed from these two alone, so resuming has nothing to restore.
        """
        self._progress = min(1.0, step / max(1, total_steps - 1))

    def forward(self, batch: Batch, divisors: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
        """Named scalars: `loss` with gradient, the raw terms without, and counts.

        Every term is its sum over the batch, divided by its divisor: the count of the whole optimizer step divided by
        its number of micro-batches, so that the mean over micro-batches is sum by count. None stands for the batch's
        own counts, which makes every term the mean over the batch. Counts are `tokens`, the positions that are
        somebody's, `positions`, with the padding, and `count/<term>`.
        """
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
        text = text_loss(logits, wanted, learned if self._by_sample else None)
        terms: dict[str, Term] = {"text": text, **self.method.losses(self.heads, outcome, batch)}
        weights, device = {"text": 1.0, **self.method.weights}, batch.kinds_BL.device
        means = {name: t.mean if divisors is None else t.total / divisors[name] for name, t in terms.items()}
        loss = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
        return {
            "loss": loss,
            **{name: mean.detach() for name, mean in means.items()},
            "tokens": (batch.kinds_BL != Kind.PAD).sum(),
            "positions": torch.tensor(batch.kinds_BL.numel(), device=device),
            **{f"count/{name}": torch.tensor(term.count, device=device) for name, term in terms.items()},
        }
