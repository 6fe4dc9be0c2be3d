"""A prompt and what was generated after it, run once more as one sequence: what every measure of a rollout looks at."""

# B = rows, L = positions of the longest prompt with its events, D = model width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from omni_model.backbone import Backbone
from omni_model.batch import collate
from omni_model.embedding import embed_batch
from omni_model.events import Event, Rollout
from omni_model.masks import look_at
from omni_model.methods.base import Method
from omni_model.sequence import Kind, Plan
from omni_model.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Track:
    """Prompts with their recorded events behind them, ready to run."""

    inputs_BLD: torch.Tensor
    """What every position is fed: words, clip features, and the latents that were recorded."""
    position_ids_3BL: torch.Tensor
    kinds_BL: torch.Tensor
    phases_BL: torch.Tensor
    """Which phase a trigger, a latent or a stop belongs to, from 0; else -1."""
    generated_BL: torch.Tensor
    """bool: the position was generated."""

    @property
    def is_media(self) -> torch.Tensor:
        """bool (B, L): a token of the clip."""
        return (self.kinds_BL == Kind.VISUAL) | (self.kinds_BL == Kind.AUDIO)

    @property
    def is_latent(self) -> torch.Tensor:
        """bool (B, L): a latent slot."""
        return (self.kinds_BL == Kind.LATENT_VISUAL) | (self.kinds_BL == Kind.LATENT_AUDIO)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A track that has been run."""

    track: Track
    hidden_BLD: torch.Tensor
    """Last hidden states after the final norm; the one at a position predicts the position after it."""


@torch.no_grad()
def replay(
    backbone: Backbone,
    method: Method,
    plans: Sequence[Plan],
    rollouts: Sequence[Rollout],
    *,
    hide_latents: bool = False,
    device: torch.device | str = "cpu",
) -> Replay:
    """Run prompts and their rollouts once more: the same hidden states as decoding had.

    `method` and `hide_latents` are those that the rollouts were generated with. A latent is fed as it was recorded and
    not made again. The end of turn is not among the events; the last position is the one that predicts it.
    """
    track = lay_track(backbone, method, plans, rollouts, device=device)
    return run_track(backbone, method, track, hide_latents=hide_latents)


@torch.no_grad()
def lay_track(
    backbone: Backbone,
    method: Method,
    plans: Sequence[Plan],
    rollouts: Sequence[Rollout],
    *,
    device: torch.device | str = "cpu",
) -> Track:
    """Prompts and recorded events as one batch, padded on the right."""
    batch = collate(plans, share_clips=True).to(device)
    prompts = embed_batch(backbone, batch).inputs_BLD
    inputs, positions, kinds, phases = [], [], [], []
    for i, (plan, rollout) in enumerate(zip(plans, rollouts, strict=True)):
        events, length = rollout.events, len(plan)
        inputs.append(torch.cat([prompts[i, :length], _vectors(backbone, events, prompts)]))
        places = torch.tensor([e.position_ids for e in events]).long().view(-1, 3)
        positions.append(torch.cat([plan.position_ids.T, places]))
        kinds.append(torch.cat([plan.kinds, torch.tensor(_kinds(method, events)).long()]))
        phases.append(torch.cat([torch.full((length,), -1), torch.tensor([e.phase for e in events]).long()]))
    kinds_BL = pad_sequence(kinds, batch_first=True, padding_value=int(Kind.PAD)).to(device)
    index_L = torch.arange(kinds_BL.shape[1], device=device)
    starts_B1 = (batch.kinds_BL != Kind.PAD).sum(1)[:, None]
    return Track(
        inputs_BLD=pad_sequence(inputs, batch_first=True),
        position_ids_3BL=pad_sequence(positions, batch_first=True).permute(2, 0, 1).to(device),
        kinds_BL=kinds_BL,
        phases_BL=pad_sequence(phases, batch_first=True, padding_value=-1).to(device),
        generated_BL=(index_L >= starts_B1) & (kinds_BL != Kind.PAD),
    )


@torch.no_grad()
def run_track(backbone: Backbone, method: Method, track: Track, *, hide_latents: bool = False) -> Replay:
    """One pass over whole sequences, by the rule of who sees whom that holds in decoding."""
    stream = Stream(backbone, bottleneck=method.unroll.answering_bottleneck, training=False, hide_latents=hide_latents)
    seen = look_at(track.kinds_BL, torch.zeros_like(track.kinds_BL))
    return Replay(track=track, hidden_BLD=stream.feed(track.inputs_BLD, track.position_ids_3BL, seen))


def _vectors(backbone: Backbone, events: Sequence[Event], like: torch.Tensor) -> torch.Tensor:
    """What was fed at each event: (events, D)."""
    tokens = torch.tensor([e.token or 0 for e in events], device=like.device).long()
    vectors = backbone.embed(tokens).to(like.dtype).clone()
    for i, event in enumerate(events):
        if event.vector is not None:
            vectors[i] = event.vector.to(vectors)
    return vectors


def _kinds(method: Method, events: Sequence[Event]) -> list[int]:
    kinds, slot = [], 0
    for event in events:
        if event.type == "latent":
            kinds.append(Kind.LATENT_VISUAL if slot < method.num_visual else Kind.LATENT_AUDIO)
            slot += 1
            continue
        slot = 0
        if event.type == "forced":
            kinds.append(Kind.STOP)
        else:
            kinds.append(Kind.TRIGGER if event.phase >= 0 else Kind.TEXT)
    return [int(kind) for kind in kinds]
