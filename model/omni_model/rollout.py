"""Roll a batch out over a cache with the model's own latents in its slots: words in one go, slots phase by phase."""

# B = rows, L = positions, P = phases, K = slots, D = model width, N = positions fed at once.

from __future__ import annotations

from dataclasses import dataclass

import torch

from omni_model.batch import Batch
from omni_model.feedback import Feedback
from omni_model.masks import Seen
from omni_model.method_options import Gradient
from omni_model.phase import Phase
from omni_model.sequence import Kind
from omni_model.slots import gather, index_range, need_anchors, scatter, slots_of_phase, take_positions
from omni_model.stream import Stream

FEW_SLOTS = 2
"""Up to so many slots are run one by one with a graph, when the gradient is to flow through all of them."""
_Piece = tuple[torch.Tensor, torch.Tensor]
"""Positions (B, N), and vectors or hidden states (B, N, D) at them."""


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
    start_B: torch.Tensor
    """Positions before these were fed already."""

    def roll(self, *, to_the_end: bool = True) -> Rollout:
        """All pieces in order; without `to_the_end` only as far as the last phase's latents need."""
        pieces: list[_Piece] = []
        fed: list[torch.Tensor] = []
        lengths_B = (self.batch.kinds_BL != Kind.PAD).sum(1)
        start_B, known = self.start_B, None
        for number in range(self.batch.triggers_BP.shape[1]):
            trigger_B = self.batch.triggers_BP[:, number]
            present_B = trigger_B >= 0
            words_BN = index_range(start_B, torch.where(present_B, trigger_B + 1, start_B))
            hidden = self._go_on(known, words_BN, pieces)
            last_B = (words_BN >= 0).sum(1).clamp(min=1) - 1
            state_BD = hidden[torch.arange(len(last_B), device=last_B.device), last_B]
            slots_BK = slots_of_phase(self.batch, number)
            latents_BKD, known = self._latents(self._phase(number, slots_BK, state_BD), number, slots_BK, pieces)
            fed.append(latents_BKD)
            start_B = torch.where(present_B, trigger_B + 1 + self.batch.num_slots, start_B)
        if to_the_end:
            self._go_on(known, index_range(start_B, lengths_B), pieces)
        return Rollout(hidden_BLD=self._in_order(pieces), fed_BPKD=torch.stack(fed, 1))

    def _go_on(self, known: _Piece | None, words_BN: torch.Tensor, pieces: list[_Piece]) -> torch.Tensor:
        """Feed the slots whose vectors are known and the words after them, in one pass; hidden states of the words."""
        vectors = gather(self.inputs_BLD, words_BN)
        if known is None:
            pieces.append((words_BN, self._feed(words_BN, vectors)))
            return pieces[-1][1]
        slots_BN, latents_BND = known
        if self.gradient == "detached":
            pieces.append((slots_BN, self._feed(slots_BN, latents_BND, constant=True)))
            return self._go_on(None, words_BN, pieces)
        both_BN = torch.cat([slots_BN, words_BN], 1)
        hidden = self._feed(both_BN, torch.cat([latents_BND.to(vectors.dtype), vectors], 1))
        pieces.append((both_BN, hidden))
        return hidden[:, slots_BN.shape[1] :]

    def _feed(self, index_BN: torch.Tensor, vectors_BND: torch.Tensor, *, constant: bool = False) -> torch.Tensor:
        return self.stream.feed(
            vectors_BND.to(self.inputs_BLD.dtype),
            self._positions(index_BN),
            self.seen.take(index_BN),
            constant=constant,
        )

    def _positions(self, index_BN: torch.Tensor) -> torch.Tensor:
        return take_positions(self.batch.position_ids_3BL, index_BN)

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

    def _latents(
        self, phase: Phase, number: int, slots_BK: torch.Tensor, pieces: list[_Piece]
    ) -> tuple[torch.Tensor, _Piece]:
        """A phase's latents (B, K, D), and those of its slots that are still to be fed.

        They are found without a graph, and `full` gradient then evaluates the map once more, with one; but a few slots
        are cheaper to run with a graph right away.
        """
        chained = self.gradient == "full" and torch.is_grad_enabled()
        if chained and self.sweeps is None and slots_BK.shape[1] <= FEW_SLOTS:
            return self._one_by_one(phase, slots_BK, pieces)
        latents = self._without_graph(phase, number)
        if chained:
            latents = phase.with_gradient(latents)
        elif self.sweeps is not None:
            with torch.no_grad():
                latents = phase.follow(latents)
        return latents, (slots_BK, latents)

    def _without_graph(self, phase: Phase, number: int) -> torch.Tensor:
        if self.sweeps is None:
            return phase.one_by_one()
        return phase.by_sweeps(
            passes=self.sweeps.limit,
            tolerance=self.sweeps.tolerance,
            carry=self.sweeps.carry,
            start_BKD=need_anchors(self.batch)[:, number] if self.sweeps.from_anchors else None,
            together=self.together,
        )

    def _one_by_one(self, phase: Phase, slots_BK: torch.Tensor, pieces: list[_Piece]) -> tuple[torch.Tensor, _Piece]:
        """Each slot fed with a graph before the next latent is read; the last one is left to be fed."""
        latents, state_BD, count = [], phase.state_BD, slots_BK.shape[1]
        for slot in range(count):
            latents.append(phase.put_forward(state_BD[:, None], slice(slot, slot + 1)))
            if slot + 1 < count:
                at_B1 = slots_BK[:, slot : slot + 1]
                pieces.append((at_B1, self._feed(at_B1, latents[-1])))
                state_BD = pieces[-1][1][:, 0]
        return torch.cat(latents, 1), (slots_BK[:, -1:], latents[-1])

    def _in_order(self, pieces: list[_Piece]) -> torch.Tensor:
        index_BN = torch.cat([index for index, _ in pieces], 1)
        hidden_BND = torch.cat([hidden for _, hidden in pieces], 1)
        return scatter(torch.zeros_like(self.inputs_BLD, dtype=hidden_BND.dtype), index_BN, hidden_BND)
