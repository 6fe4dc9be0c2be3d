"""Several plans as one batch, padded on the right."""

# B = rows, L = positions, P = phases (spans) of the row that has most, K = slots of a phase, D = model width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from omni_model.sequence import IGNORE, Kind, Media, Plan

_SILENT_MEL_FRAMES = 20
"""A fifth of a second: more than the audio tower's convolutions and pooling swallow."""


@dataclass(frozen=True, kw_only=True)
class MediaBatch:
    """The clips of a batch, concatenated as the towers take them."""

    patches: torch.Tensor
    """float32 (all patches, 1176)"""
    grid_thw: torch.Tensor
    """int64 (clips, 3)"""
    mel: torch.Tensor
    """float32 (128, all mel frames) of the clips that have sound"""
    mel_lengths: torch.Tensor
    """int64 (clips with sound,)"""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Everything the model needs for one forward."""

    input_ids_BL: torch.Tensor
    kinds_BL: torch.Tensor
    labels_BL: torch.Tensor
    position_ids_3BL: torch.Tensor
    source_BL: torch.Tensor
    """Row of the batch's concatenated tower output that a media token takes, else -1."""
    times_s_BL: torch.Tensor
    blocks_BL: torch.Tensor
    triggers_BP: torch.Tensor
    """Index of each phase's trigger, -1 where a row has fewer phases."""
    looks_s_BP2: torch.Tensor
    """Start and end of the segment each phase looks at."""
    num_visual: int
    num_audio: int
    media: MediaBatch
    anchors_BPKD: torch.Tensor | None = None
    """Targets of the latents, None in evaluation."""
    has_stand_in_sound: bool = False
    """The only sound is silence that no position takes, so that the audio tower runs all the same."""

    @property
    def num_slots(self) -> int:
        return self.num_visual + self.num_audio

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return replace(self, **{f.name: _move(getattr(self, f.name), device) for f in fields(self)})


def _move(value, device):
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, MediaBatch):
        return replace(value, **{f.name: getattr(value, f.name).to(device) for f in fields(value)})
    return value


def collate(
    plans: Sequence[Plan],
    *,
    anchors: Sequence[torch.Tensor] | None = None,
    min_phases: int = 0,
    always_sound: bool = False,
) -> Batch:
    """Pad plans to one length. `anchors` holds per row float32 (phases, K, D).

    Ranks that gather weights together must run equally many forwards: `min_phases` pads the phase axis. Ranks that
    exchange gradients must have those of the same weights: `always_sound` gives a batch of mute clips a moment of
    silence to run the audio tower on.
    Raises `ValueError` where phases differ in their slot counts, or anchors do not match the phases.
    """
    length = max(len(p) for p in plans)
    phases = max(min_phases, *(len(p.spans) for p in plans))
    num_visual, num_audio = _slot_counts(plans)
    media = join_media([p.media for p in plans])
    stand_in = always_sound and len(media.mel_lengths) == 0
    return Batch(
        input_ids_BL=_pad([p.input_ids for p in plans], length, 0),
        kinds_BL=_pad([p.kinds for p in plans], length, int(Kind.PAD)),
        labels_BL=_pad([p.labels for p in plans], length, IGNORE),
        position_ids_3BL=torch.stack([_pad([p.position_ids[a] for p in plans], length, 0) for a in range(3)]),
        source_BL=_pad(_global_sources(plans), length, -1),
        times_s_BL=_pad([p.times_s for p in plans], length, float("nan")),
        blocks_BL=_pad([p.blocks for p in plans], length, 0),
        triggers_BP=_pad([torch.tensor([s.trigger for s in p.spans]).long() for p in plans], phases, -1),
        looks_s_BP2=torch.stack([_looks(p, phases) for p in plans]),
        num_visual=num_visual,
        num_audio=num_audio,
        media=_with_silence(media) if stand_in else media,
        anchors_BPKD=None if anchors is None else _pad_anchors(plans, anchors, phases),
        has_stand_in_sound=stand_in,
    )


def join_media(media: Sequence[Media]) -> MediaBatch:
    """Concatenate clips for the towers."""
    mels = [m.mel for m in media if m.mel is not None]
    return MediaBatch(
        patches=torch.cat([m.patches for m in media]),
        grid_thw=torch.tensor([m.grid_thw for m in media]),
        mel=torch.cat(mels, dim=1) if mels else torch.zeros(128, 0),
        mel_lengths=torch.tensor([m.shape[1] for m in mels]).long(),
    )


def _with_silence(media: MediaBatch) -> MediaBatch:
    mel = torch.zeros(len(media.mel), _SILENT_MEL_FRAMES)
    return replace(media, mel=mel, mel_lengths=torch.tensor([_SILENT_MEL_FRAMES]))


def _slot_counts(plans: Sequence[Plan]) -> tuple[int, int]:
    counts = {(s.num_visual, s.num_audio) for p in plans for s in p.spans}
    if len(counts) > 1:
        raise ValueError(f"phases of one batch must have equal slot counts, got {sorted(counts)}")
    return counts.pop() if counts else (0, 0)


def _global_sources(plans: Sequence[Plan]) -> list[torch.Tensor]:
    """Tower rows counted over the whole batch instead of within each clip."""
    visual_start = audio_start = 0
    sources = []
    for plan in plans:
        shift = torch.zeros_like(plan.source)
        shift[plan.kinds == Kind.VISUAL] = visual_start
        shift[plan.kinds == Kind.AUDIO] = audio_start
        sources.append(plan.source + shift)
        visual_start += plan.media.num_visual_tokens
        audio_start += plan.media.num_audio_tokens
    return sources


def _looks(plan: Plan, phases: int) -> torch.Tensor:
    looks = torch.zeros(phases, 2)
    for i, span in enumerate(plan.spans):
        looks[i] = torch.tensor([span.start_s, span.end_s])
    return looks


def _pad_anchors(plans: Sequence[Plan], anchors: Sequence[torch.Tensor], phases: int) -> torch.Tensor:
    slots, dim = anchors[0].shape[1:]
    padded = torch.zeros(len(plans), phases, slots, dim)
    for row, (plan, have) in enumerate(zip(plans, anchors, strict=True)):
        # A silent skip here would train on nothing (invariant 13).
        if len(have) != len(plan.spans):
            raise ValueError(
                f"row {row} of the batch has {len(plan.spans)} latent phases but anchors for {len(have)}; "
                "preprocess the manifest again so that anchors and trajectories belong together"
            )
        if plan.spans and have.shape[1] != plan.spans[0].num_slots:
            raise ValueError(
                f"anchors have {have.shape[1]} slots a phase but the method wants {plan.spans[0].num_slots}; "
                "give preprocessing and training the same num_visual and num_audio"
            )
        padded[row, : len(have)] = have
    return padded


def _pad(rows: Sequence[torch.Tensor], length: int, value: float) -> torch.Tensor:
    padded = torch.full((len(rows), length), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
