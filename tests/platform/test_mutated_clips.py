"""Whatever bytes arrive, a clip comes out or a `MediaError`, within its time, and the next clip is decoded."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from mutations import mutate
from polyglots import ordinary

from omni_platform.media.decode_process import DecodeProcess
from omni_platform.media.errors import MediaError

_LEAK = re.compile(r"(^|\W)/\w|\.cc\b|\.py\b|exit status")
"""A path, a source line, or a decoder that died."""
_REASONS = {"container", "undecodable", "truncated", "no_video", "too_long", "too_large", "deadline"}


def _decode_mutated(clips: dict[str, bytes], seed: int, num: int) -> Counter[str]:
    rng, outcomes = np.random.default_rng(seed), Counter[str]()
    suffixes = list(clips)
    with DecodeProcess(memory_bytes=1 << 30) as process:
        for i in range(num):
            suffix = suffixes[i % len(suffixes)]
            content = mutate(clips[suffix], rng)
            try:
                clip = process.decode(content, deadline_s=20, name="clip", fps=4.0, max_frames=16, max_duration_s=60)
            except MediaError as error:
                assert error.reason in _REASONS, (i, suffix, error)
                assert not _LEAK.search(error.detail), (i, suffix, error)
                outcomes[error.reason] += 1
            else:
                assert clip.frames.shape[1:] and 0 < clip.duration_s <= 60
                outcomes["decoded"] += 1
        assert len(process.decode(clips["mp4"], deadline_s=20).frames) == 2
    return outcomes


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    return ordinary(tmp_path_factory.mktemp("ordinary"))


def test_damaged_clips_are_decoded_or_refused(clips):
    outcomes = _decode_mutated(clips, seed=1, num=150)
    assert outcomes.total() == 150
    assert outcomes["decoded"] > 10 and len(outcomes) > 3, outcomes


@pytest.mark.slow
def test_two_thousand_damaged_clips_are_decoded_or_refused(clips):
    assert _decode_mutated(clips, seed=2, num=2000).total() == 2000
