"""Examine what a trial has trained: its answers under every condition, on encoded clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from omni_model.encoded import EncodedQuestions, Span
from omni_model.folder import Exported, Loaded, Preparation
from omni_model.generate import Rollout
from omni_model.learner import Learner
from omni_model.measures import measure
from omni_model.method_options import Count, Natural
from omni_model.methods.base import Method
from omni_model.moments import Moments
from omni_model.probes import BLIND
from omni_model.sequence import EncodedClip, Plan
from omni_model.sitting import Sitting
from omni_model.trial import Layouts, anchors_of, segment_anchors

_Rows = list[tuple[EncodedQuestions, Any]]
_Segments = Mapping[str, Mapping[Span, torch.Tensor]]
"""Clip id -> anchors of all its segments."""


@dataclass(frozen=True, kw_only=True)
class ExamConfig:
    """How a trained method is examined."""

    conditions: tuple[str, ...] = ("own",)
    """As in evaluation: own, the blind ones, and interventions."""
    max_new_tokens: Count = 24
    max_phases: Natural = 3
    clips_per_batch: Count = 32
    measured_clips: Natural = 0
    """So many of the first clips, in whole batches, are measured too: where the model looks, what latents are like."""


@torch.no_grad()
def examine_trial(
    loaded: Loaded,
    learner: Learner,
    clips: Sequence[EncodedQuestions],
    config: ExamConfig,
    *,
    blanks: Mapping[tuple[int, int, int], EncodedClip] | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """One record a question and condition (`Sitting`); own records of the first clips have `measures`.

    `blanks` holds, by the shape of a clip, what the towers make of black frames and silence, for the blind conditions;
    `device` is the learner's.
    """
    learner.eval()
    model = Exported(loaded=loaded, method=learner.method, heads=learner.heads, preparation=Preparation())
    layouts = Layouts(loaded, learner.method)
    records: list[dict[str, Any]] = []
    for start in range(0, len(clips), config.clips_per_batch):
        part = clips[start : start + config.clips_per_batch]
        rows: _Rows = [(clip, sample) for clip in part for sample in clip.samples]
        segments = _segments(rows, learner.method)
        sitting = _sitting(model, rows, layouts, config, segments, device)
        own = sitting.own()
        blind = {which: _blinded(sitting.plans, which, blanks or {}) for which in BLIND if which in config.conditions}
        found = sitting.records(own, config.conditions, blind)
        if start < config.measured_clips:
            _add_measures(found, model, rows, sitting, own, segments)
        records += found
    return records


def _sitting(
    model: Exported, rows: _Rows, layouts: Layouts, config: ExamConfig, segments: _Segments, device: str
) -> Sitting:
    nothing = torch.zeros(0, 0, model.loaded.backbone.width)
    return Sitting(
        model=model,
        samples=[sample for _, sample in rows],
        clip_ids=[clip.clip_id for clip, _ in rows],
        plans=[layouts.prompt(clip, sample) for clip, sample in rows],
        anchors=[anchors_of(sample, segments[clip.clip_id]) if segments else nothing for clip, sample in rows],
        max_new_tokens=config.max_new_tokens,
        max_phases=config.max_phases,
        device=device,
    )


def _blinded(plans: Sequence[Plan], which: str, blanks: Mapping[tuple[int, int, int], EncodedClip]) -> list[Plan]:
    """The same prompts with black frames, silence or both; rows that shared a clip still do."""
    known: dict[int, EncodedClip] = {}
    for plan in plans:
        media = plan.media
        assert isinstance(media, EncodedClip)
        if media.grid_thw not in blanks:
            raise ValueError(f"no blank clip of shape {media.grid_thw} is given; encode black frames and silence")
        blank = blanks[media.grid_thw]
        known[id(media)] = replace(
            media,
            visual_ND=media.visual_ND if which == "no_audio" else blank.visual_ND,
            audio_ND=media.audio_ND if which == "no_video" else blank.audio_ND,
        )
    return [replace(plan, media=known[id(plan.media)]) for plan in plans]


def _segments(rows: _Rows, method: Method) -> _Segments:
    """Of every clip once; nothing for a method without slots."""
    if not method.num_visual + method.num_audio:
        return {}
    return {clip_id: segment_anchors(clip, method) for clip_id, clip in {c.clip_id: c for c, _ in rows}.items()}


def _add_measures(
    records: list[dict[str, Any]],
    model: Exported,
    rows: _Rows,
    sitting: Sitting,
    own: Sequence[Rollout],
    segments: _Segments,
) -> None:
    moments = None
    if segments:
        looks = [[(look.start_s, look.end_s) for look in sample.looks] for _, sample in rows]
        moments = Moments(sitting.clip_ids, looks, [segments[clip.clip_id] for clip, _ in rows])
    figures = measure(model.loaded.backbone, model.method, sitting.plans, own, moments=moments, device=sitting.device)
    for record, of_row in zip(records, figures, strict=False):
        record["measures"] = of_row
