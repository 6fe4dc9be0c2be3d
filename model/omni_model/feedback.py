"""From a hidden state to the next input vector: what a latent slot is fed."""

# B = rows, D = model width.

from __future__ import annotations

import torch
from torch import nn

from omni_model.method_options import FeedbackKind


class Feedback(nn.Module):
    """The hidden state as it is (`raw`, LatentOmni Eq. 2) or through one linear layer that starts as the identity.

    `constant` is one learned vector whatever the state, for pause tokens. `norm_match` scales each vector to the root
    mean square of the row's own clip features, because hidden states after the final norm are far larger than anything
    the model is used to read.
    """

    def __init__(self, width: int, *, kind: FeedbackKind = "raw", norm_match: bool = False) -> None:
        super().__init__()
        self.norm_match = norm_match
        self.constant = nn.Parameter(torch.randn(width) * 0.02) if kind == "constant" else None
        self.linear = nn.Linear(width, width) if kind == "linear" else None
        if self.linear is not None:
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor, scale_B: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, ..., D) to input vectors; `scale_B` is the root mean square to match, per row."""
        fed = self._vector(hidden)
        if not self.norm_match:
            return fed
        # Bounded before the root: at zero the root's slope is infinite, which even an unused row would pass on.
        rms = fed.float().square().mean(-1, keepdim=True).clamp(min=1e-12).sqrt()
        scale = scale_B.view(-1, *[1] * (hidden.ndim - 1))
        return (fed / rms * scale).to(fed.dtype)

    @property
    def is_constant(self) -> bool:
        """Whether slots are fed the same vector whatever the model puts forward."""
        return self.constant is not None

    def _vector(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.constant is not None:
            return self.constant.to(hidden.dtype).expand_as(hidden)
        return hidden if self.linear is None else self.linear(hidden)


def media_scale(inputs_BLD: torch.Tensor, media_BL: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row's clip features: (B,). Per row, so that batching changes nothing."""
    square_BL = inputs_BLD.detach().float().square().mean(-1)
    count = media_BL.sum(1).clamp(min=1)
    return ((square_BL * media_BL).sum(1) / count).sqrt()
