"""Where each token stands in time and space: TMRoPE for the clip, OSPE for latent slots.

Position ids have three axes (time, height, width). Text counts up on all three together. One temporal id is 40 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from omni_model.method_options import Ospe

IDS_PER_SECOND = 25
CHUNK_SECONDS = 2


@dataclass(frozen=True, kw_only=True)
class ClipLayout:
    """The tokens of one audio-visual block in sequence order, between its begin and end markers."""

    is_audio: torch.Tensor
    """bool (n,): audio token or visual token."""
    source: torch.Tensor
    """int64 (n,): which row of the tower's output the token takes (of the audio or the visual one)."""
    offsets: torch.Tensor
    """int64 (3, n): position ids relative to the block's base."""
    end_offset: int
    """Position of the end markers relative to the base."""
    visual_times_s: torch.Tensor
    """float32 (visual tokens,): when each visual token's frames begin."""
    audio_times_s: torch.Tensor
    """float32 (audio tokens,): when each audio token begins."""


def layout_clip(*, grid_thw: tuple[int, int, int], merge: int, seconds_per_grid: float, num_audio: int) -> ClipLayout:
    """Interleave a clip's visual and audio tokens in chunks of two seconds, as Qwen2.5-Omni does.

    `grid_thw` counts patches before merging. `num_audio` 0 means a clip without sound: visual tokens only.
    """
    t, h, w = grid_thw[0], grid_thw[1] // merge, grid_thw[2] // merge
    grid_ids = (torch.arange(t, dtype=torch.float32) * seconds_per_grid * IDS_PER_SECOND).long()
    visual = torch.stack(
        [
            grid_ids.repeat_interleave(h * w),
            torch.arange(h).repeat_interleave(w).repeat(t),
            torch.arange(w).repeat(t * h),
        ]
    )
    audio = torch.arange(num_audio).expand(3, -1)
    visual_chunks = _chunks(visual[0].tolist()) if visual.shape[1] else []
    audio_chunks = _chunks(audio[0].tolist()) if num_audio else []
    if not audio_chunks:
        visual_chunks = [(0, visual.shape[1])]
    pieces: list[tuple[bool, int, int]] = []
    for j in range(max(len(visual_chunks), len(audio_chunks))):
        pieces += [(False, *c) for c in visual_chunks[j : j + 1]]
        pieces += [(True, *c) for c in audio_chunks[j : j + 1]]
    offsets = torch.cat([(audio if a else visual)[:, i:k] for a, i, k in pieces], dim=1)
    visual_times_s, audio_times_s = clip_times(
        grid_thw=grid_thw, merge=merge, seconds_per_grid=seconds_per_grid, num_audio=num_audio
    )
    _, last_start, last_stop = pieces[-1]
    last = (audio if pieces[-1][0] else visual)[:, last_start:last_stop]
    return ClipLayout(
        is_audio=torch.cat([torch.full((k - i,), a) for a, i, k in pieces]),
        source=torch.cat([torch.arange(i, k) for _, i, k in pieces]),
        offsets=offsets,
        # The stock model counts on from the last piece, not from the largest id of the block.
        end_offset=int(last.max()) + 1,
        visual_times_s=visual_times_s,
        audio_times_s=audio_times_s,
    )


def clip_times(
    *, grid_thw: tuple[int, int, int], merge: int, seconds_per_grid: float, num_audio: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """When each visual token's frames and each audio token begin: float32 (visual tokens,) and (num_audio,)."""
    t, h, w = grid_thw[0], grid_thw[1] // merge, grid_thw[2] // merge
    visual_s = (torch.arange(t) * seconds_per_grid).repeat_interleave(h * w).float()
    return visual_s, torch.arange(num_audio).float() / IDS_PER_SECOND


def _chunks(ids: list[int]) -> list[tuple[int, int]]:
    """Cut ascending temporal ids at every multiple of the chunk length; at most one cut per token."""
    length = IDS_PER_SECOND * CHUNK_SECONDS
    cuts, limit = [0], length
    for i, value in enumerate(ids):
        if value >= limit:
            cuts.append(i)
            limit += length
    cuts.append(len(ids))
    return list(pairwise(cuts))


def latent_offsets(mode: Ospe, *, num_visual: int, num_audio: int, segment_s: float = 0.0) -> tuple[torch.Tensor, int]:
    """Positions of one phase's latent slots relative to the id after its trigger, and the offset of the stop token.

    OSPE (LatentOmni Eq. 3): latents of the same moment get the same temporal id, so that rotary attention between a
    visual and an audio latent of one instant has no phase.

    * `none`: slots count up like text.
    * `slot`: visual slot i at i, audio slot m at round(m K_v / K_a); all three axes alike.
    * `tmrope`: the clock of the clip, 25 ids a second over `segment_s` seconds; the stop token follows the last id.
    * `code_compat`: `slot` with height = width = the absolute id 0 for audio, as in the authors' inference code; the
      caller overwrites those two axes (marked here by the offset -1).

    Returns int64 (3, K) and an int. Causality follows sequence order, never these ids.
    """
    total = num_visual + num_audio
    if mode == "none":
        return torch.arange(total).expand(3, -1).clone(), total
    if mode == "tmrope":
        span = IDS_PER_SECOND * segment_s
        ids = torch.cat([_spread(num_visual, span), _spread(num_audio, span)])
        return ids.expand(3, -1).clone(), int(ids.max()) + 1 if total else 0
    # Without visual slots there is nothing to keep time with, and audio slots count up.
    audio = _spread(num_audio, num_visual or num_audio)
    ids = torch.cat([torch.arange(num_visual), audio]).expand(3, -1).clone()
    if mode == "code_compat":
        ids[1:, num_visual:] = -1
    return ids, total


def _spread(count: int, length: float) -> torch.Tensor:
    """`count` slots spread evenly over `length` ids, to the nearest id (halves up, in exact arithmetic)."""
    return torch.tensor([math.floor(i * length / count + 0.5) for i in range(count)], dtype=torch.long)


def place_latents(offsets: torch.Tensor, base: int) -> torch.Tensor:
    """Absolute ids of latent slots whose phase begins at `base`; the offset -1 stands for the absolute id 0."""
    return torch.where(offsets < 0, torch.zeros_like(offsets), offsets + base)
