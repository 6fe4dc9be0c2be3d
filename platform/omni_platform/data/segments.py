"""Segments: the looks of a sample's trajectory, held against the clip they look at, and other moments of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from omni_platform.media.decode import DecodedClip
from omni_platform.schema import LookStep, Quarantined, Sample, Segment, Step

END_TOLERANCE_S = 0.5
"""Times written down by people are often rounded to seconds: an end this far past the clip is cut to it."""
_SAME_S = 1e-3
"""Manifests round to a millisecond: spans that differ by no more show the same moment."""

Span = tuple[float, float]
"""Start and end in seconds."""


def check_sample(sample: Sample, clip: DecodedClip) -> Quarantined | None:
    """Why a sample cannot be used with its clip, or None where it can."""
    if sample.needs_audio and not clip.has_audio:
        return refuse(sample, "decode", "no_audio", f"{sample.clip_uri} has no sound, and its question needs it")
    if sample.needs_audio and clip.is_silent:
        detail = f"{sample.clip_uri} has a sound track of silence, and its question needs sound"
        return refuse(sample, "decode", "silent", detail)
    for index, look in enumerate(sample.looks):
        if look.start_s >= clip.duration_s or look.end_s > clip.duration_s + END_TOLERANCE_S:
            detail = (
                f"segment {index} [{look.start_s:g}, {look.end_s:g}] s of {sample.sample_id} is outside "
                f"{sample.clip_uri}, which lasts {clip.duration_s:.2f} s"
            )
            return refuse(sample, "decode", "segment_outside", detail)
    return None


def fit_sample(sample: Sample, duration_s: float) -> Sample:
    """The sample with every look cut to the clip."""
    return replace(sample, trajectory=tuple(_fit_step(step, duration_s) for step in sample.trajectory))


def cut_segments(sample: Sample, clip_id: str) -> list[Segment]:
    """One segment per look, in order."""
    return [
        Segment(
            segment_id=f"{sample.sample_id}#{index}",
            sample_id=sample.sample_id,
            clip_id=clip_id,
            index=index,
            start_s=look.start_s,
            end_s=look.end_s,
        )
        for index, look in enumerate(sample.looks)
    ]


def spread_spans(duration_s: float, looks: Sequence[Span], count: int) -> list[Span]:
    """Up to `count` moments of a clip beside its looks, as long as these are on average and evenly spread, in order.

    The looks lie in the clip. What equals one of them is left out; a clip without looks has no others.
    """
    if not looks:
        return []
    length_s = min(sum(end_s - start_s for start_s, end_s in looks) / len(looks), duration_s)
    starts_s = np.linspace(0.0, duration_s - length_s, count).tolist()
    spans: list[Span] = []
    for span in ((start_s, min(start_s + length_s, duration_s)) for start_s in starts_s):
        # In a clip hardly longer than its looks, the moments themselves are the same.
        if not any(same_span(span, other) for other in (*looks, *spans)):
            spans.append(span)
    return spans


def same_span(one: Span, other: Span) -> bool:
    """Whether two spans show the same moment of their clip."""
    return all(abs(a - b) <= _SAME_S for a, b in zip(one, other, strict=True))


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share some of their time."""
    return min(one[1], other[1]) - max(one[0], other[0]) > _SAME_S


def other_segments(spans: Sequence[Span], clip_id: str) -> list[Segment]:
    """One segment per span that belongs to the clip and to no sample."""
    return [
        Segment(
            segment_id=f"{clip_id}@{index}",
            sample_id=None,
            clip_id=clip_id,
            index=index,
            start_s=start_s,
            end_s=end_s,
        )
        for index, (start_s, end_s) in enumerate(spans)
    ]


def refuse(sample: Sample, stage: str, reason: str, detail: str) -> Quarantined:
    """The quarantine row of a sample."""
    return Quarantined(row_id=sample.sample_id, stage=stage, reason=reason, detail=detail)


def _fit_step(step: Step, duration_s: float) -> Step:
    if not isinstance(step, LookStep) or step.end_s <= duration_s:
        return step
    return replace(step, end_s=duration_s)
