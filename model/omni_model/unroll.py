"""How latent slots are computed in training: one seam, several engines, one definition of slots.

With the trigger of a phase at position p, latent k (1-based) is z_k = P(h at p + k - 1), and it is the input at p + k.
The hidden state at the last slot is not used: the stop is forced. Everything that compares latents with anchors reads
`Unrolled.latents_BPKD`, so slot and target cannot slip against each other.
"""

# B = rows, L = positions, P = phases, K = slots, D = model width, N = positions fed at once.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from omni_model.backbone import Backbone, Encoded
from omni_model.batch import Batch
from omni_model.embedding import embed_batch
from omni_model.feedback import Feedback, media_scale
from omni_model.masks import Bottleneck, Seen, allowed, look_at, with_self
from omni_model.sequence import Kind
from omni_model.stream import Stream

Engine = Literal["teacher_parallel", "recurrent"]
Gradient = Literal["full", "detached"]


@dataclass(frozen=True, kw_only=True)
class UnrollConfig:
    """Which engine computes the slots."""

    engine: Engine = "recurrent"
    """`teacher_parallel` puts the anchors into the slots and runs once; `recurrent` feeds the model its own latents."""
    gradient: Gradient = "full"
    """Of `recurrent`: back through every slot and the cache (`full`), or own latents as constants (`detached`)."""
    teacher_share: float = 0.0
    """Of `recurrent`: share of slots that are fed the anchor instead of the own latent, drawn slot by slot."""
    bottleneck: Bottleneck = "none"

    def __post_init__(self) -> None:
        if not 0.0 <= self.teacher_share <= 1.0:
            raise ValueError(f"teacher_share is a share between 0 and 1, got {self.teacher_share}")


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """What a forward over a batch gives to the losses."""

    hidden_BLD: torch.Tensor
    latents_BPKD: torch.Tensor
    """The fed-back form of what the model put forward for each slot; zeros where a row has no such phase."""
    present_BP: torch.Tensor
    """bool: the phase exists."""
    encoded: Encoded


def unroll(backbone: Backbone, feedback: Feedback, batch: Batch, config: UnrollConfig, *, training: bool) -> Unrolled:
    """Run a batch, filling its latent slots as configured. Raises `ValueError` where anchors are needed and absent."""
    embedded = embed_batch(backbone, batch)
    inputs = embedded.inputs_BLD
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    media = (batch.kinds_BL == Kind.VISUAL) | (batch.kinds_BL == Kind.AUDIO)
    scale_B = media_scale(inputs, media)
    stream = Stream(backbone, bottleneck=config.bottleneck, training=training)
    taught_BPK = _taught(batch, config.teacher_share if training else 0.0)
    if batch.num_slots == 0:
        hidden = _run_parallel(backbone, inputs, batch, seen, config, training=training)
    elif config.engine == "teacher_parallel":
        filled = _fill(inputs, batch, _need_anchors(batch))
        hidden = _run_parallel(backbone, filled, batch, seen, config, training=training)
    elif config.gradient == "detached":
        # Own latents as constants: roll out without a graph, then learn in one parallel pass over the result.
        with torch.no_grad():
            rolled = _run_recurrent(stream, feedback, inputs, batch, seen, scale_B, taught_BPK)
            fed = _mix(_latents(feedback, rolled, batch, scale_B), batch, taught_BPK)
        hidden = _run_parallel(backbone, _fill(inputs, batch, fed), batch, seen, config, training=training)
    else:
        hidden = _run_recurrent(stream, feedback, inputs, batch, seen, scale_B, taught_BPK)
    return Unrolled(
        hidden_BLD=hidden,
        latents_BPKD=_latents(feedback, hidden, batch, scale_B),
        present_BP=batch.triggers_BP >= 0,
        encoded=embedded.encoded,
    )


def _run_parallel(
    backbone: Backbone,
    inputs: torch.Tensor,
    batch: Batch,
    seen: Seen,
    config: UnrollConfig,
    *,
    training: bool,
) -> torch.Tensor:
    mask = with_self(allowed(seen, seen, bottleneck=config.bottleneck, training=training))
    return backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)


def _run_recurrent(
    stream: Stream,
    feedback: Feedback,
    inputs: torch.Tensor,
    batch: Batch,
    seen: Seen,
    scale_B: torch.Tensor,
    taught_BPK: torch.Tensor | None,
) -> torch.Tensor:
    """Text pieces in one go, slots one by one, over a cache. Returns hidden states in sequence order (B, L, D)."""
    fed_index: list[torch.Tensor] = []
    fed_hidden: list[torch.Tensor] = []

    def feed(index_BN: torch.Tensor, vectors_BND: torch.Tensor) -> torch.Tensor:
        positions = torch.stack([axis.gather(1, index_BN.clamp(min=0)) for axis in batch.position_ids_3BL])
        hidden = stream.feed(vectors_BND, positions, seen.take(index_BN))
        fed_index.append(index_BN)
        fed_hidden.append(hidden)
        return hidden

    lengths_B = (batch.kinds_BL != Kind.PAD).sum(1)
    start_B = torch.zeros_like(lengths_B)
    for phase in range(batch.triggers_BP.shape[1]):
        trigger_B = batch.triggers_BP[:, phase]
        present_B = trigger_B >= 0
        piece = _index_range(start_B, torch.where(present_B, trigger_B + 1, start_B))
        hidden = feed(piece, _gather(inputs, piece))
        last_B = (piece >= 0).sum(1).clamp(min=1) - 1
        state_BD = hidden[torch.arange(len(last_B), device=last_B.device), last_B]
        for slot in range(batch.num_slots):
            vector_BD = _mix(feedback(state_BD, scale_B), batch, taught_BPK, (slice(None), phase, slot))
            index_B1 = torch.where(present_B, trigger_B + 1 + slot, -1)[:, None]
            state_BD = feed(index_B1, vector_BD[:, None])[:, 0]
        start_B = torch.where(present_B, trigger_B + 1 + batch.num_slots, start_B)
    rest = _index_range(start_B, lengths_B)
    feed(rest, _gather(inputs, rest))
    return _in_order(torch.cat(fed_index, 1), torch.cat(fed_hidden, 1), inputs.shape[1])


def _taught(batch: Batch, share: float) -> torch.Tensor | None:
    """bool (B, P, K), drawn slot by slot: the slot is fed its anchor instead of the own latent. None for no slot."""
    if share == 0.0:
        return None
    return torch.rand(*batch.triggers_BP.shape, batch.num_slots, device=batch.triggers_BP.device) < share


def _mix(
    own: torch.Tensor, batch: Batch, taught_BPK: torch.Tensor | None, at: tuple[slice | int, ...] = ()
) -> torch.Tensor:
    """Own latents, or the anchors where slots are taught; `at` selects the phase and slot that `own` belongs to."""
    if taught_BPK is None:
        return own
    return torch.where(taught_BPK[at][..., None], _need_anchors(batch)[at].to(own.dtype), own)


def _latents(feedback: Feedback, hidden_BLD: torch.Tensor, batch: Batch, scale_B: torch.Tensor) -> torch.Tensor:
    """z_k = P(h at trigger + k - 1), phase by phase: (B, P, K, D)."""
    (rows, phases), slots = batch.triggers_BP.shape, batch.num_slots
    width = hidden_BLD.shape[-1]
    index = _slot_index(batch, first=0).flatten(1)
    states = _gather(hidden_BLD, index).flatten(0, 1)
    fed = feedback(states, scale_B.repeat_interleave(phases * slots))
    present = (batch.triggers_BP >= 0)[:, :, None, None]
    return torch.where(present, fed.view(rows, phases, slots, width), torch.zeros((), device=fed.device))


def _fill(inputs_BLD: torch.Tensor, batch: Batch, vectors_BPKD: torch.Tensor) -> torch.Tensor:
    """Put vectors into the latent slots."""
    index = _slot_index(batch, first=1).flatten(1)
    return _scatter(inputs_BLD, index, vectors_BPKD.flatten(1, 2).to(inputs_BLD.dtype))


def _slot_index(batch: Batch, *, first: int) -> torch.Tensor:
    """Positions trigger + first … trigger + first + K - 1 of every phase, -1 where absent: (B, P, K)."""
    steps = torch.arange(batch.num_slots, device=batch.triggers_BP.device) + first
    triggers = batch.triggers_BP[:, :, None]
    return torch.where(triggers >= 0, triggers + steps, -1)


def _need_anchors(batch: Batch) -> torch.Tensor:
    if batch.anchors_BPKD is None:
        raise ValueError(
            "this engine feeds anchors but the batch has none; preprocess the manifest with its trajectories"
        )
    return batch.anchors_BPKD


def _index_range(start_B: torch.Tensor, stop_B: torch.Tensor) -> torch.Tensor:
    """Per row start … stop - 1, padded with -1 to the longest (at least one column)."""
    count = max(1, int((stop_B - start_B).max()))
    index = start_B[:, None] + torch.arange(count, device=start_B.device)
    return torch.where(index < stop_B[:, None], index, -1)


def _gather(x_BLD: torch.Tensor, index_BN: torch.Tensor) -> torch.Tensor:
    safe = index_BN.clamp(min=0)[..., None].expand(-1, -1, x_BLD.shape[-1])
    return x_BLD.gather(1, safe)


def _scatter(x_BLD: torch.Tensor, index_BN: torch.Tensor, vectors_BND: torch.Tensor) -> torch.Tensor:
    """A copy of x with vectors at the given positions; index -1 goes to a spare row that is cut off."""
    length = x_BLD.shape[1]
    spare = torch.cat([x_BLD, x_BLD.new_zeros(len(x_BLD), 1, x_BLD.shape[-1])], 1)
    target = torch.where(index_BN < 0, length, index_BN)[..., None].expand_as(vectors_BND)
    return spare.scatter(1, target, vectors_BND)[:, :length]


def _in_order(index_BN: torch.Tensor, hidden_BND: torch.Tensor, length: int) -> torch.Tensor:
    empty = hidden_BND.new_zeros(len(hidden_BND), length, hidden_BND.shape[-1])
    return _scatter(empty, index_BN, hidden_BND)
