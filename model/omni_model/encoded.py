"""Clips that have been through the towers once: while the towers stay frozen, training needs nothing else of them.

A file of encoded clips holds, for every clip, what the towers made of it and of each segment that its questions look
at, in half precision, and the questions themselves.
"""

# N = features, K = slots, S = segments, D = model width.

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni_model.anchors import cut_segment, encode_each
from omni_model.pooling import norm_weighted_pool
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import EncodedClip, prepare_media
from omni_platform.schema import Sample, steps_from_rows, steps_to_rows

Span = tuple[float, float]
"""Start and end of a segment in seconds."""


@dataclass(frozen=True, kw_only=True)
class RawClip:
    """A clip with what is asked about it, before the towers."""

    clip_id: str
    frames: np.ndarray
    """uint8 (F, H, W, 3), at the size that the towers take"""
    sample_fps: float
    waveform: np.ndarray | None
    """float32, 16 kHz mono"""
    samples: tuple[Sample, ...]
    segments: tuple[Span, ...] = ()
    """Segments to encode beside those that the samples look at, to tell the right one from."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What the towers made of each segment of a clip, encoded as a clip of its own."""

    spans: tuple[Span, ...]
    visual: tuple[torch.Tensor, ...]
    """(N, D) each"""
    audio: tuple[torch.Tensor, ...]

    def anchors(self, *, num_visual: int, num_audio: int) -> dict[Span, torch.Tensor]:
        """Anchors of every segment, float32 (K, D), visual slots first (LatentOmni, 1.4)."""
        return {
            span: torch.cat([norm_weighted_pool(v, num_visual), norm_weighted_pool(a, num_audio)])
            for span, v, a in zip(self.spans, self.visual, self.audio, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class EncodedQuestions:
    """A clip after the towers, its segments and its questions."""

    clip_id: str
    clip: EncodedClip
    segments: Segments
    samples: tuple[Sample, ...]


@torch.inference_mode()
def encode_clips(
    backbone: QwenOmniBackbone, clips: Sequence[RawClip], *, device: str = "cpu"
) -> list[EncodedQuestions]:
    """Run clips and their segments through the towers, all in one go; `device` is the backbone's."""
    spans = [_spans(clip) for clip in clips]
    wholes = [prepare_media(c.frames, sample_fps=c.sample_fps, waveform=c.waveform) for c in clips]
    pieces = [
        cut_segment(clip.frames, clip.sample_fps, clip.waveform, span)
        for clip, of_clip in zip(clips, spans, strict=True)
        for span in of_clip
    ]
    whole_features = encode_each(backbone, wholes, device=device)
    piece_features = iter(encode_each(backbone, pieces, device=device) if pieces else [])
    encoded = []
    for clip, media, of_clip, (visual, audio) in zip(clips, wholes, spans, whole_features, strict=True):
        features = list(itertools.islice(piece_features, len(of_clip)))
        encoded.append(
            EncodedQuestions(
                clip_id=clip.clip_id,
                clip=EncodedClip(
                    visual_ND=visual,
                    audio_ND=audio,
                    grid_thw=media.grid_thw,
                    seconds_per_grid=media.seconds_per_grid,
                ),
                segments=Segments(
                    spans=of_clip, visual=tuple(v for v, _ in features), audio=tuple(a for _, a in features)
                ),
                samples=clip.samples,
            )
        )
    return encoded


def save_encoded(path: Path, clips: Iterable[EncodedQuestions]) -> None:
    """Write encoded clips into one file; it appears when it is complete."""
    features: list[torch.Tensor] = []
    rows: list[dict[str, Any]] = []
    for clip in clips:
        of_clip = [clip.clip.visual_ND, clip.clip.audio_ND, *clip.segments.visual, *clip.segments.audio]
        features += of_clip
        rows.append(
            {
                "clip_id": clip.clip_id,
                "grid_thw": list(clip.clip.grid_thw),
                "seconds_per_grid": clip.clip.seconds_per_grid,
                "spans": [list(span) for span in clip.segments.spans],
                "lengths": [len(f) for f in of_clip],
                "samples": [asdict(s) | {"trajectory": steps_to_rows(s.trajectory)} for s in clip.samples],
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save({"features": torch.cat(features).half(), "rows": json.dumps(rows)}, aside)
    aside.rename(path)


def load_encoded(path: Path) -> list[EncodedQuestions]:
    """Read what `save_encoded` wrote; features stay on the disk until they are used.

    Raises `ValueError` for a file that is not there.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: encode the clips first")
    stored = torch.load(path, mmap=True, weights_only=True)
    features, start, clips = stored["features"], 0, []
    for row in json.loads(stored["rows"]):
        pieces = features[start : (start := start + sum(row["lengths"]))].split(row["lengths"])
        clips.append(_clip_of(row, pieces))
    return clips


def _clip_of(row: dict[str, Any], pieces: Sequence[torch.Tensor]) -> EncodedQuestions:
    t, h, w = row["grid_thw"]
    count = len(row["spans"])
    samples = (
        Sample(**{**s, "trajectory": steps_from_rows(s["trajectory"]), "options": tuple(s["options"])})
        for s in row["samples"]
    )
    return EncodedQuestions(
        clip_id=row["clip_id"],
        clip=EncodedClip(
            visual_ND=pieces[0], audio_ND=pieces[1], grid_thw=(t, h, w), seconds_per_grid=row["seconds_per_grid"]
        ),
        segments=Segments(
            spans=tuple((start_s, end_s) for start_s, end_s in row["spans"]),
            visual=tuple(pieces[2 : 2 + count]),
            audio=tuple(pieces[2 + count :]),
        ),
        samples=tuple(samples),
    )


def _spans(clip: RawClip) -> tuple[Span, ...]:
    looked_at = {(look.start_s, look.end_s) for sample in clip.samples for look in sample.looks}
    return tuple(sorted(looked_at | set(clip.segments)))
