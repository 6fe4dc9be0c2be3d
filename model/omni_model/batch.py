"""Several plans as one batch, padded on the right."""

# B = rows, L = positions, P = phases (spans) of the row that has most, S = spans asked about, K = slots of a phase,
# D = model width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from omni_model.sequence import IGNORE, EncodedClip, Kind, Media, Plan

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
class Encoded:
    """What the towers made of a batch's clips, in the language model's embedding space."""

    visual_ND: torch.Tensor
    """All visual tokens, clip after clip."""
    audio_ND: torch.Tensor
    """All audio tokens of the clips with sound, clip after clip."""


@dataclass(frozen=True, kw_only=True)
class SharedClips:
    """Rows that begin with the same clip: it is run once, and its keys and values serve all of them."""

    first_C: torch.Tensor
    """int64: a row that begins with each clip."""
    clip_B: torch.Tensor
    """int64: which clip a row begins with."""
    lengths_C: torch.Tensor
    """int64: how many positions the rows of a clip share."""


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
    media: MediaBatch | Encoded
    """The clips, each once, as the towers take them; or what they made of them, where that was kept."""
    anchors_BPKD: torch.Tensor | None = None
    """Targets of the latents, None in evaluation."""
    others_MKD: torch.Tensor | None = None
    """Anchors of other segments of the batch's clips, for a loss that tells the right one from them."""
    has_stand_in_sound: bool = False
    """The only sound is silence that no position takes, so that the audio tower runs all the same."""
    shared: SharedClips | None = None
    """None where every row has a clip of its own."""

    @property
    def num_slots(self) -> int:
        return self.num_visual + self.num_audio

    def within(self, kind: Kind, row_S: torch.Tensor, span_S2: torch.Tensor) -> torch.Tensor:
        """bool (S, L): the position of row `row_S` is of the kind, and its time lies in [start, end) seconds."""
        times_SL, (start_S1, end_S1) = self.times_s_BL[row_S], span_S2[:, :, None].unbind(1)
        return (self.kinds_BL[row_S] == kind) & (times_SL >= start_S1) & (times_SL < end_S1)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return replace(self, **{f.name: moved(getattr(self, f.name), device) for f in fields(self)})


def moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a part of a batch that is made of tensors, on another device; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (MediaBatch, Encoded, SharedClips)):
        return replace(value, **{f.name: getattr(value, f.name).to(device) for f in fields(value)})
    return value


def collate(
    plans: Sequence[Plan],
    *,
    anchors: Sequence[torch.Tensor] | None = None,
    others: Sequence[torch.Tensor] | None = None,
    min_phases: int = 0,
    always_sound: bool = False,
    share_clips: bool = False,
) -> Batch:
    """Pad plans to one length. `anchors` holds per row float32 (phases, K, D), `others` blocks of float32 (any, K, D):
    further segments of the clips. With `share_clips` plans about one and the same media object share its clip, which
    is then encoded and run once.

    Ranks that gather weights together must run equally many forwards: `min_phases` pads the phase axis. Ranks that
    exchange gradients must have those of the same weights: `always_sound` gives a batch of mute clips a moment of
    silence to run the audio tower on.
    Raises `ValueError` where phases differ in their slot counts, or anchors do not match the phases.
    """
    length = max(len(p) for p in plans)
    phases = max(min_phases, *(len(p.spans) for p in plans))
    num_visual, num_audio = _slot_counts(plans)
    clip_of, clips = _find_clips(plans) if share_clips else (list(range(len(plans))),) * 2
    media = _join([plans[first].media for first in clips])
    stand_in = always_sound and isinstance(media, MediaBatch) and len(media.mel_lengths) == 0
    return Batch(
        input_ids_BL=_pad([p.input_ids for p in plans], length, 0),
        kinds_BL=_pad([p.kinds for p in plans], length, int(Kind.PAD)),
        labels_BL=_pad([p.labels for p in plans], length, IGNORE),
        position_ids_3BL=torch.stack([_pad([p.position_ids[a] for p in plans], length, 0) for a in range(3)]),
        source_BL=_pad(_global_sources(plans, clip_of, clips), length, -1),
        times_s_BL=_pad([p.times_s for p in plans], length, float("nan")),
        blocks_BL=_pad([p.blocks for p in plans], length, 0),
        triggers_BP=_pad([torch.tensor([s.trigger for s in p.spans]).long() for p in plans], phases, -1),
        looks_s_BP2=torch.stack([_looks(p, phases) for p in plans]),
        num_visual=num_visual,
        num_audio=num_audio,
        media=_with_silence(media) if stand_in and isinstance(media, MediaBatch) else media,
        anchors_BPKD=None if anchors is None else _pad_anchors(plans, anchors, phases),
        others_MKD=None if others is None else torch.cat(list(others)),
        has_stand_in_sound=stand_in,
        shared=_share(plans, clip_of, clips) if len(clips) < len(plans) else None,
    )


def _join(media: Sequence[Media | EncodedClip]) -> MediaBatch | Encoded:
    """Clips one after the other, or what the towers made of them. A batch holds clips of one sort."""
    encoded = [m for m in media if isinstance(m, EncodedClip)]
    if encoded:
        if len(encoded) < len(media):
            raise ValueError("a batch holds either encoded clips or clips to encode, not both")
        return Encoded(
            visual_ND=torch.cat([m.visual_ND for m in encoded]), audio_ND=torch.cat([m.audio_ND for m in encoded])
        )
    return join_media([m for m in media if isinstance(m, Media)])


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


def _find_clips(plans: Sequence[Plan]) -> tuple[list[int], list[int]]:
    """Which clip each row begins with, and the first row of each clip."""
    seen: dict[int, int] = {}
    clip_of = [seen.setdefault(id(plan.media), len(seen)) for plan in plans]
    return clip_of, [clip_of.index(clip) for clip in range(len(seen))]


def _share(plans: Sequence[Plan], clip_of: list[int], clips: list[int]) -> SharedClips:
    lengths = [plans[first].prefix_length for first in clips]
    if any(lengths[clip] != plan.prefix_length for plan, clip in zip(plans, clip_of, strict=True)):
        raise ValueError("rows that share a clip must begin alike: give them the same system prompt")
    return SharedClips(first_C=torch.tensor(clips), clip_B=torch.tensor(clip_of), lengths_C=torch.tensor(lengths))


def _global_sources(plans: Sequence[Plan], clip_of: list[int], clips: list[int]) -> list[torch.Tensor]:
    """Tower rows counted over the clips of the whole batch instead of within each."""
    starts = [(0, 0)]
    for first in clips:
        media = plans[first].media
        starts.append((starts[-1][0] + media.num_visual_tokens, starts[-1][1] + media.num_audio_tokens))
    sources = []
    for plan, clip in zip(plans, clip_of, strict=True):
        shift = torch.zeros_like(plan.source)
        shift[plan.kinds == Kind.VISUAL], shift[plan.kinds == Kind.AUDIO] = starts[clip]
        sources.append(plan.source + shift)
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
                f"anchors have {have.shape[1]} slots a phase but the method wants {plan.spans[0].num_slots}: "
                "pool them to its num_visual and num_audio"
            )
        padded[row, : len(have)] = have
    return padded


def _pad(rows: Sequence[torch.Tensor], length: int, value: float) -> torch.Tensor:
    padded = torch.full((len(rows), length), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
