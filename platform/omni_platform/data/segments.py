"""Segments: the looks of a sample's trajectory, held against the clip they look at."""

from __future__ import annotations

from dataclasses import replace

from omni_platform.media.decode import DecodedClip
from omni_platform.schema import LookStep, Quarantined, Sample, Segment, Step

END_TOLERANCE_S = 0.5
"""Times written down by people are often rounded to seconds: an end this far past the clip is cut to it."""


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


def refuse(sample: Sample, stage: str, reason: str, detail: str) -> Quarantined:
    """The quarantine row of a sample."""
    return Quarantined(row_id=sample.sample_id, stage=stage, reason=reason, detail=detail)


def _fit_step(step: Step, duration_s: float) -> Step:
    if not isinstance(step, LookStep) or step.end_s <= duration_s:
        return step
    return replace(step, end_s=duration_s)
