"""Where the slots of a batch are: the one place that knows their indices.

With the trigger of a phase at position p, latent k (1-based) is z_k = P(h at p + k - 1), and it is the input at p + k.
The hidden state at the last slot is not used: the stop is forced.
"""

# B = rows, L = positions, P = phases, K = slots, D = model width, N = positions taken at once.

from __future__ import annotations

import torch

from omni_model.batch import Batch
from omni_model.feedback import Feedback


def read_latents(feedback: Feedback, hidden_BLD: torch.Tensor, batch: Batch, scale_B: torch.Tensor) -> torch.Tensor:
    """z_k = P(h at trigger + k - 1), phase by phase: (B, P, K, D), zeros where a row has no such phase."""
    (rows, phases), slots = batch.triggers_BP.shape, batch.num_slots
    states = gather(hidden_BLD, _slot_index(batch, first=0).flatten(1))
    fed = feedback(states, scale_B).view(rows, phases, slots, hidden_BLD.shape[-1])
    present = (batch.triggers_BP >= 0)[:, :, None, None]
    return torch.where(present, fed, torch.zeros((), device=fed.device))


def fill_slots(inputs_BLD: torch.Tensor, batch: Batch, vectors_BPKD: torch.Tensor) -> torch.Tensor:
    """Put vectors into the latent slots."""
    return scatter(inputs_BLD, _slot_index(batch, first=1).flatten(1), vectors_BPKD.flatten(1, 2).to(inputs_BLD.dtype))


def slots_of_phase(batch: Batch, phase: int) -> torch.Tensor:
    """Positions of one phase's slots, -1 in rows without it: (B, K)."""
    return _slot_index(batch, first=1)[:, phase]


def need_anchors(batch: Batch) -> torch.Tensor:
    """The batch's anchors (B, P, K, D). Raises `ValueError` where there are none."""
    if batch.anchors_BPKD is None:
        raise ValueError(
            "this engine feeds anchors but the batch has none; preprocess the manifest with its trajectories"
        )
    return batch.anchors_BPKD


def index_range(start_B: torch.Tensor, stop_B: torch.Tensor) -> torch.Tensor:
    """Per row start … stop - 1, padded with -1 to the longest (at least one column)."""
    count = max(1, int((stop_B - start_B).max()))
    index = start_B[:, None] + torch.arange(count, device=start_B.device)
    return torch.where(index < stop_B[:, None], index, -1)


def gather(x_BLD: torch.Tensor, index_BN: torch.Tensor) -> torch.Tensor:
    """Rows of x at the given positions; index -1 gives something that nobody may use."""
    safe = index_BN.clamp(min=0)[..., None].expand(-1, -1, x_BLD.shape[-1])
    return x_BLD.gather(1, safe)


def take_positions(position_ids_3BL: torch.Tensor, index_BN: torch.Tensor) -> torch.Tensor:
    """Position ids (3, B, N) at the given positions; index -1 gives some that nobody may use."""
    return torch.stack([axis.gather(1, index_BN.clamp(min=0)) for axis in position_ids_3BL])


def scatter(x_BLD: torch.Tensor, index_BN: torch.Tensor, vectors_BND: torch.Tensor) -> torch.Tensor:
    """A copy of x with vectors at the given positions; index -1 goes to a spare row that is cut off."""
    length = x_BLD.shape[1]
    spare = torch.cat([x_BLD, x_BLD.new_zeros(len(x_BLD), 1, x_BLD.shape[-1])], 1)
    target = torch.where(index_BN < 0, length, index_BN)[..., None].expand_as(vectors_BND)
    return spare.scatter(1, target, vectors_BND)[:, :length]


def _slot_index(batch: Batch, *, first: int) -> torch.Tensor:
    """Positions trigger + first … trigger + first + K - 1 of every phase, -1 where absent: (B, P, K)."""
    steps = torch.arange(batch.num_slots, device=batch.triggers_BP.device) + first
    triggers = batch.triggers_BP[:, :, None]
    return torch.where(triggers >= 0, triggers + steps, -1)
