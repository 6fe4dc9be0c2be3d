"""How latent slots are computed in training: one seam, several engines, one definition of slots (`slots.py`).

Everything that compares latents with anchors reads `Unrolled.latents_BPKD`, so slot and target cannot slip against each
other.
"""

# B = rows, L = positions, P = phases, K = slots, D = model width.

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from omni_model.backbone import Backbone
from omni_model.batch import Batch, Encoded
from omni_model.embedding import embed_batch
from omni_model.feedback import Feedback, media_scale
from omni_model.keyvalues import KeyValues
from omni_model.masks import Bottleneck, Seen, allowed, look_at, with_self
from omni_model.method_options import Engine, JacobiStart
from omni_model.prefix import feed_rows, feed_shared
from omni_model.rollout import Gradient, Roller, Sweeps
from omni_model.sequence import Kind
from omni_model.slots import (
    fill_slots,
    need_anchors,
    read_latents,
    scatter,
)
from omni_model.stream import Stream


@dataclass(frozen=True, kw_only=True)
class UnrollConfig:
    """Which engine computes the slots, and what the gradient runs through."""

    engine: Engine = "recurrent"
    """What the slots are fed, and in which pass the losses read the sequence.

    * `teacher_parallel`: the anchors, in one pass over the whole sequence.
    * `recurrent`: own latents, one after the other over a cache; the losses read the same rollout.
    * `two_pass`: the same latents; the losses then read one pass over the whole sequence with them in place.
    * `jacobi`: own latents, all slots of a phase in parallel and in several sweeps; otherwise as `recurrent`.
    """
    gradient: Gradient = "full"
    """How a slot passes gradient back to what came before it, in every engine that feeds own latents.

    * `full`: through the vector it is fed and through its keys and values.
    * `kv_only`: the fed vectors are constants; later positions still teach its keys and values.
    * `detached`: both are constants. The slot's own latent still learns from the losses on latents, and words learn
      through the prompt and each other.
    """
    teacher_share: float = 0.0
    """Share of slots that are fed the anchor instead of the own latent, drawn slot by slot; in training alone."""
    teacher_share_end: float | None = None
    """Where `teacher_share` arrives with the last step, in a straight line; None keeps it."""
    jacobi_sweeps: int = 8
    """Passes over the slots of a phase at most, the last of which stays in the cache; as many as slots are exact."""
    jacobi_tolerance: float = 1e-3
    """Movement of a row's slots in one sweep, relative to their norm, at which it stops early; 0 for never."""
    jacobi_start: JacobiStart = "trigger"
    """The first guess in training: the trigger's own latent in every slot, as in decoding, or the anchors."""
    jacobi_carry: bool = True
    """Hand on what a slot moved to those after it within a sweep (`sweeps.py`); off, sweeps are plain."""
    bottleneck: Bottleneck = "none"
    bottleneck_until: float = 1.0
    """Share of training after which the bottleneck is lifted, for good."""

    def __post_init__(self) -> None:
        for name in ("teacher_share", "teacher_share_end"):
            share = getattr(self, name)
            if share is not None and not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}")
        if not 0.0 < self.bottleneck_until <= 1.0:
            raise ValueError(
                f"bottleneck_until is a share of training above 0 and up to 1, got {self.bottleneck_until}; "
                "for none at all take bottleneck: none"
            )
        if self.jacobi_sweeps < 2:
            raise ValueError(
                f"jacobi_sweeps is {self.jacobi_sweeps}, but one pass only feeds the guess; take 2 or more, or "
                "engine: recurrent"
            )
        if self.jacobi_tolerance < 0.0:
            raise ValueError(f"jacobi_tolerance is a relative movement, 0 or more, got {self.jacobi_tolerance}")

    def bottleneck_at(self, progress: float) -> Bottleneck:
        """The bottleneck at a point of training between 0 and 1."""
        return self.bottleneck if progress <= self.bottleneck_until else "none"

    @property
    def answering_bottleneck(self) -> Bottleneck:
        """The bottleneck with which the trained model answers."""
        return self.bottleneck if self.bottleneck_until == 1.0 else "none"

    def teacher_share_at(self, progress: float) -> float:
        """The share at a point of training between 0, its first step, and 1, its last."""
        end = self.teacher_share if self.teacher_share_end is None else self.teacher_share_end
        return self.teacher_share + (end - self.teacher_share) * progress


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """What a forward over a batch gives to the losses."""

    hidden_BLD: torch.Tensor
    latents_BPKD: torch.Tensor
    """The fed-back form of what the model put forward for each slot; zeros where a row has no such phase."""
    present_BP: torch.Tensor
    """bool: the phase exists."""
    encoded: Encoded


def unroll(
    backbone: Backbone,
    feedback: Feedback,
    batch: Batch,
    config: UnrollConfig,
    *,
    training: bool,
    progress: float = 0.0,
) -> Unrolled:
    """Run a batch, filling its latent slots as configured.

    `progress` is how much of training is done, from 0 to 1. Raises `ValueError` where anchors are needed and absent.
    """
    bottleneck = config.bottleneck_at(progress) if training else config.answering_bottleneck
    config = replace(config, bottleneck=bottleneck)
    embedded = embed_batch(backbone, batch)
    inputs = embedded.inputs_BLD
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    scale_B = media_scale(inputs, (batch.kinds_BL == Kind.VISUAL) | (batch.kinds_BL == Kind.AUDIO))
    if batch.num_slots == 0:
        hidden = _run_whole(backbone, inputs, seen, batch, config, training=training)
    elif feedback.is_constant or config.engine == "teacher_parallel":
        vectors = _constant(feedback, inputs, batch, scale_B) if feedback.is_constant else need_anchors(batch)
        filled = fill_slots(inputs, batch, vectors)
        hidden = _run_whole(backbone, filled, seen, batch, config, training=training)
    else:
        stream = Stream(backbone, bottleneck=config.bottleneck, training=training)
        roller = Roller(
            stream=stream,
            feedback=feedback,
            batch=batch,
            inputs_BLD=inputs,
            seen=seen,
            scale_B=scale_B,
            taught_BPK=_taught(batch, config.teacher_share_at(progress) if training else 0.0),
            gradient=config.gradient,
            sweeps=_sweeps(config, training=training),
            together=training,
            start_B=feed_shared(stream, batch, inputs, seen),
        )
        if config.engine == "two_pass":
            hidden = _run_twice(backbone, roller, config, training=training)
        else:
            hidden = roller.roll().hidden_BLD
    return Unrolled(
        hidden_BLD=hidden,
        latents_BPKD=read_latents(feedback, hidden, batch, scale_B),
        present_BP=batch.triggers_BP >= 0,
        encoded=embedded.encoded,
    )


def _constant(feedback: Feedback, inputs: torch.Tensor, batch: Batch, scale_B: torch.Tensor) -> torch.Tensor:
    """The one vector of pause tokens in every slot: (B, P, K, D)."""
    rows, phases = batch.triggers_BP.shape
    return feedback(inputs.new_zeros(rows, phases, batch.num_slots, inputs.shape[-1]), scale_B)


def _run_twice(backbone: Backbone, roller: Roller, config: UnrollConfig, *, training: bool) -> torch.Tensor:
    """A rollout for the latents alone, with a graph only where they pass gradient on, then the pass to learn from."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and config.gradient == "full"):
        fed = roller.roll(to_the_end=False).fed_BPKD
    filled = fill_slots(roller.inputs_BLD, roller.batch, fed)
    return _run_whole(backbone, filled, roller.seen, roller.batch, config, training=training)


def _run_whole(
    backbone: Backbone, inputs: torch.Tensor, seen: Seen, batch: Batch, config: UnrollConfig, *, training: bool
) -> torch.Tensor:
    cut = config.engine == "two_pass" and config.gradient == "detached"
    if batch.shared is not None:
        if cut:
            raise ValueError("engine two_pass with gradient detached takes no rows that share a clip")
        return _run_rest(Stream(backbone, bottleneck=config.bottleneck, training=training), inputs, seen, batch)
    mask = with_self(allowed(seen, seen, bottleneck=config.bottleneck, training=training))
    cache = KeyValues(hold=_at_slots_constant(batch)) if cut else None
    return backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask, cache=cache)


def _run_rest(stream: Stream, inputs: torch.Tensor, seen: Seen, batch: Batch) -> torch.Tensor:
    """The clips once, then what follows them in every row; hidden states within the clips are zeros."""
    rest_BN, hidden_BND = feed_rows(stream, batch, inputs, seen)
    return scatter(torch.zeros_like(inputs, dtype=hidden_BND.dtype), rest_BN, hidden_BND)


def _at_slots_constant(batch: Batch):
    slots_BL = (batch.kinds_BL == Kind.LATENT_VISUAL) | (batch.kinds_BL == Kind.LATENT_AUDIO)
    return lambda x_BHLE: torch.where(slots_BL[:, None, :, None], x_BHLE.detach(), x_BHLE)


def _sweeps(config: UnrollConfig, *, training: bool) -> Sweeps | None:
    if config.engine != "jacobi":
        return None
    return Sweeps(
        limit=config.jacobi_sweeps,
        tolerance=config.jacobi_tolerance,
        carry=config.jacobi_carry,
        from_anchors=config.jacobi_start == "anchors" and training,
    )


def _taught(batch: Batch, share: float) -> torch.Tensor | None:
    """bool (B, P, K), drawn slot by slot: the slot is fed its anchor instead of the own latent. None for no slot."""
    if share == 0.0:
        return None
    return torch.rand(*batch.triggers_BP.shape, batch.num_slots, device=batch.triggers_BP.device) < share
