"""Roll a batch out over a cache with the model's own latents in its slots: words in one go, slots phase by phase."""

# B = rows, L = positions, P = phases, K = slots, D = model width, N = positions fed at once.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from omni_model.batch import Batch
from omni_model.feedback import Feedback
from omni_model.masks import Seen
from omni_model.phase import Phase
from omni_model.sequence import Kind
from omni_model.slots import gather, index_range, need_anchors, scatter, slots_of_phase
from omni_model.stream import Stream

Gradient = Literal["full", "kv_only", "detached"]


@dataclass(frozen=True, kw_only=True)
class Sweeps:
    """How the slots of a phase are found in parallel."""

    limit: int
    """Passes over the slots, the one that is kept included."""
    tolerance: float
    carry: bool
    from_anchors: bool


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A batch that went through the model piece by piece."""

    hidden_BLD: torch.Tensor
    fed_BPKD: torch.Tensor
    """What the slots were fed, with gradient where it is to flow."""


@dataclass(frozen=True, kw_only=True)
class Roller:
    """Rolls one batch out."""

    stream: Stream
    feedback: Feedback
    batch: Batch
    inputs_BLD: torch.Tensor
    seen: Seen
    scale_B: torch.Tensor
    taught_BPK: torch.Tensor | None
    gradient: Gradient
    sweeps: Sweeps | None
    """None: one slot after the other."""
    together: bool

    def roll(self, *, to_the_end: bool = True) -> Rollout:
        """All pieces in order; without `to_the_end` only as far as the last phase's latents need."""
        pieces: list[tuple[torch.Tensor, torch.Tensor]] = []
        fed: list[torch.Tensor] = []
        lengths_B = (self.batch.kinds_BL != Kind.PAD).sum(1)
        start_B, phases = torch.zeros_like(lengths_B), self.batch.triggers_BP.shape[1]
        for number in range(phases):
            trigger_B = self.batch.triggers_BP[:, number]
            present_B = trigger_B >= 0
            words_BN = index_range(start_B, torch.where(present_B, trigger_B + 1, start_B))
            hidden = self._feed(words_BN, gather(self.inputs_BLD, words_BN))
            pieces.append((words_BN, hidden))
            last_B = (words_BN >= 0).sum(1).clamp(min=1) - 1
            state_BD = hidden[torch.arange(len(last_B), device=last_B.device), last_B]
            slots_BK = slots_of_phase(self.batch, number)
            fed.append(self._latents(self._phase(number, slots_BK, state_BD), number))
            if to_the_end or number + 1 < phases:
                hidden = self._feed(slots_BK, fed[-1], constant=self.gradient == "detached")
                pieces.append((slots_BK, hidden))
            start_B = torch.where(present_B, trigger_B + 1 + self.batch.num_slots, start_B)
        if to_the_end:
            rest_BN = index_range(start_B, lengths_B)
            pieces.append((rest_BN, self._feed(rest_BN, gather(self.inputs_BLD, rest_BN))))
        return Rollout(hidden_BLD=self._in_order(pieces), fed_BPKD=torch.stack(fed, 1))

    def _feed(self, index_BN: torch.Tensor, vectors_BND: torch.Tensor, *, constant: bool = False) -> torch.Tensor:
        return self.stream.feed(
            vectors_BND.to(self.inputs_BLD.dtype),
            self._positions(index_BN),
            self.seen.take(index_BN),
            constant=constant,
        )

    def _positions(self, index_BN: torch.Tensor) -> torch.Tensor:
        return torch.stack([axis.gather(1, index_BN.clamp(min=0)) for axis in self.batch.position_ids_3BL])

    def _phase(self, number: int, slots_BK: torch.Tensor, state_BD: torch.Tensor) -> Phase:
        taught = None
        if self.taught_BPK is not None:
            taught = self.taught_BPK[:, number], need_anchors(self.batch)[:, number]
        return Phase(
            slots=self.stream.piece(self._positions(slots_BK), self.seen.take(slots_BK)),
            state_BD=state_BD,
            present_B=slots_BK[:, 0] >= 0,
            feedback=self.feedback,
            scale_B=self.scale_B,
            taught=taught,
        )

    def _latents(self, phase: Phase, number: int) -> torch.Tensor:
        """What is fed, found without a graph; `full` gradient then evaluates the map once more, with one."""
        chained = self.gradient == "full" and torch.is_grad_enabled()
        if self.sweeps is None:
            latents = phase.one_by_one()
            return phase.with_gradient(latents) if chained else latents
        latents = phase.by_sweeps(
            passes=self.sweeps.limit,
            tolerance=self.sweeps.tolerance,
            carry=self.sweeps.carry,
            start_BKD=need_anchors(self.batch)[:, number] if self.sweeps.from_anchors else None,
            together=self.together,
        )
        if chained:
            return phase.with_gradient(latents)
        with torch.no_grad():
            return phase.follow(latents)

    def _in_order(self, pieces: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        index_BN = torch.cat([index for index, _ in pieces], 1)
        hidden_BND = torch.cat([hidden for _, hidden in pieces], 1)
        return scatter(torch.zeros_like(self.inputs_BLD, dtype=hidden_BND.dtype), index_BN, hidden_BND)
