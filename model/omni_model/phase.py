"""The slots of one phase over everything before it, and the two ways of finding the latents that belong in them."""

# B = rows, K = slots, D = model width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from omni_model.adjoint import with_chain_gradient
from omni_model.feedback import Feedback
from omni_model.stream import Piece
from omni_model.sweeps import settle


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of every row that has it at this moment."""

    slots: Piece
    state_BD: torch.Tensor
    """Hidden state at the trigger."""
    present_B: torch.Tensor
    """bool: the row has this phase; the others get zeros."""
    feedback: Feedback
    scale_B: torch.Tensor
    """What the feedback may scale latents to."""
    taught: tuple[torch.Tensor, torch.Tensor] | None = None
    """bool (B, K) and (B, K, D): slots that are fed their anchor whatever the model puts forward."""

    def follow(self, fed_BKD: torch.Tensor) -> torch.Tensor:
        """F: what the model puts forward for each slot when the slots before it are fed `fed_BKD`."""
        hidden = self.slots.run(fed_BKD)
        return self.put_forward(torch.cat([self.state_BD[:, None], hidden[:, :-1]], 1), slice(None))

    @torch.no_grad()
    def one_by_one(self) -> torch.Tensor:
        """The latents (B, K, D) by definition: each slot after the one before it, over a scratch copy of the cache."""
        scratch, state_BD, latents = self.slots.scratch(), self.state_BD, []
        count = self.slots.count
        for slot in range(count):
            latents.append(self.put_forward(state_BD[:, None], slice(slot, slot + 1)))
            # What the last slot makes is not needed: the stop is forced.
            if slot + 1 < count:
                state_BD = self.slots.step(latents[-1][:, 0], scratch)
        return torch.cat(latents, 1)

    @torch.no_grad()
    def by_sweeps(
        self,
        *,
        passes: int,
        tolerance: float,
        carry: bool,
        start_BKD: torch.Tensor | None = None,
        together: bool = False,
    ) -> torch.Tensor:
        """Latents (B, K, D) that are right after `follow` or `with_gradient`, in so many passes over the slots in all.

        These are the last pass but one, which is a plain sweep with a graph and without, and the last one feeds what
        it makes. Without `start_BKD` every slot begins with the trigger's own latent.
        """
        count = self.slots.count
        guess = self.put_forward(self.state_BD[:, None].expand(-1, count, -1), slice(None))
        if start_BKD is not None:
            guess = torch.cat([guess[:, :1], start_BKD[:, 1:].to(guess.dtype)], 1)
        return settle(self.follow, guess, sweeps=passes - 2, tolerance=tolerance, carry=carry, together=together)

    def with_gradient(self, latents_BKD: torch.Tensor) -> torch.Tensor:
        """F(latents), one more sweep, with the gradient of the whole chain of slots."""
        return with_chain_gradient(self.follow, latents_BKD, keep_graph=not _is_divided(self.slots.backbone))

    def put_forward(self, states_BND: torch.Tensor, slots: slice) -> torch.Tensor:
        """What the given slots are fed where the states before them are these; zeros in rows without the phase."""
        own = self.feedback(states_BND, self.scale_B)
        if self.taught is not None:
            taught_BK, anchors_BKD = self.taught
            own = torch.where(taught_BK[:, slots, None], anchors_BKD[:, slots].to(own.dtype), own)
        return torch.where(self.present_B[:, None, None], own, torch.zeros((), device=own.device, dtype=own.dtype))


def _is_divided(backbone: object) -> bool:
    # A weight that lies on other ranks between passes (ZeRO-3) is empty here.
    return isinstance(backbone, nn.Module) and any(p.numel() == 0 for p in backbone.parameters())
