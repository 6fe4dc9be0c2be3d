"""A sample is held against its clip before it is used."""

from __future__ import annotations

import numpy as np
import pytest

from omni_platform.data.segments import check_sample, cut_segments, fit_sample
from omni_platform.media.decode import DecodedClip
from omni_platform.schema import LookStep, Sample, TextStep


def _sample(*looks: tuple[float, float], needs_audio: bool = True) -> Sample:
    steps = [LookStep(start_s=start_s, end_s=end_s) for start_s, end_s in looks]
    trajectory = (TextStep(text="Look:"), *steps)
    return Sample(
        sample_id="s",
        clip_uri="a.mp4",
        question="q",
        answer="a",
        trajectory=trajectory,
        needs_audio=needs_audio,
    )


def _clip(loudness: float | None = 0.5) -> DecodedClip:
    wave = None if loudness is None else np.full(96_000, loudness, np.float32)
    return DecodedClip(frames=np.zeros((12, 4, 4, 3), np.uint8), sample_fps=2.0, waveform=wave, duration_s=6.0)


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        ((0.0, 6.0), None),
        ((5.0, 6.5), None),
        ((5.0, 6.6), "segment_outside"),
        ((6.0, 6.3), "segment_outside"),
        ((7.0, 8.0), "segment_outside"),
    ],
)
def test_looks_must_lie_in_the_clip(look, reason):
    refusal = check_sample(_sample((0.0, 1.0), look), _clip())
    assert (refusal.reason if refusal else None) == reason
    if refusal:
        assert refusal.row_id == "s" and "segment 1" in refusal.detail and "a.mp4" in refusal.detail


@pytest.mark.parametrize(("loudness", "reason"), [(None, "no_audio"), (0.0, "silent"), (0.1, None)])
def test_a_question_about_sound_needs_sound(loudness, reason):
    refusal = check_sample(_sample((0.0, 1.0)), _clip(loudness))
    assert (refusal.reason if refusal else None) == reason
    assert check_sample(_sample((0.0, 1.0), needs_audio=False), _clip(loudness)) is None


def test_looks_are_cut_to_the_clip_and_become_segments_in_order():
    fitted = fit_sample(_sample((1.0, 2.0), (5.0, 6.3)), 6.0)
    assert fitted.trajectory[0] == TextStep(text="Look:")
    segments = cut_segments(fitted, "clip")
    assert [(s.segment_id, s.index, s.start_s, s.end_s) for s in segments] == [
        ("s#0", 0, 1.0, 2.0),
        ("s#1", 1, 5.0, 6.0),
    ]
    assert {(s.sample_id, s.clip_id) for s in segments} == {("s", "clip")}
