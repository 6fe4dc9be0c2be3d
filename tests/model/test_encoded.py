"""Clips after the towers: the same features and anchors as ever, and a file that gives them back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_model.anchors import encode_anchors
from omni_model.batch import collate, join_media
from omni_model.encoded import encode_clips, load_encoded, save_encoded
from omni_model.sequence import PlanBuilder, prepare_media

HALF = {"rtol": 1e-3, "atol": 5e-3}
"""Half precision keeps eleven bits, and features are near ten."""


@pytest.fixture(scope="module")
def encoded(backbone, raw_clips):
    return encode_clips(backbone, raw_clips)


@pytest.fixture(scope="module")
def stored(encoded, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoded") / "deep" / "clips.pt"
    save_encoded(path, iter(encoded))
    assert [file.name for file in path.parent.iterdir()] == ["clips.pt"]
    return load_encoded(path)


def test_features_are_what_the_towers_make_of_each_clip_alone(backbone, raw_clips, encoded):
    for raw, clip in zip(raw_clips, encoded, strict=True):
        media = prepare_media(raw.frames, sample_fps=raw.sample_fps, waveform=raw.waveform)
        with torch.no_grad():
            alone = backbone.encode(join_media([media]))
        torch.testing.assert_close(clip.clip.visual_ND, alone.visual_ND, atol=2e-5, rtol=0)
        torch.testing.assert_close(clip.clip.audio_ND, alone.audio_ND, atol=2e-5, rtol=0)
        for name in ("grid_thw", "seconds_per_grid", "num_visual_tokens", "num_audio_tokens"):
            assert getattr(clip.clip, name) == getattr(media, name), name
        assert (clip.clip_id, clip.samples) == (raw.clip_id, raw.samples)


def test_segments_are_those_looked_at_and_those_asked_for(raw_clips, encoded):
    looked = (
        [((0.0, 1.0), (0.0, 2.0), (1.0, 2.0))] * 2 + [((0.0, 1.0), (0.0, 2.0))] + [((0.0, 1.0), (0.0, 2.0), (1.0, 2.0))]
    )
    assert [clip.segments.spans for clip in encoded] == looked


def test_a_file_gives_back_what_was_written(encoded, stored):
    for clip, again in zip(encoded, stored, strict=True):
        assert (again.clip_id, again.samples, again.segments.spans) == (clip.clip_id, clip.samples, clip.segments.spans)
        assert (again.clip.grid_thw, again.clip.seconds_per_grid) == (clip.clip.grid_thw, clip.clip.seconds_per_grid)
        pairs = [(clip.clip.visual_ND, again.clip.visual_ND), (clip.clip.audio_ND, again.clip.audio_ND)]
        pairs += zip(clip.segments.visual, again.segments.visual, strict=True)
        pairs += zip(clip.segments.audio, again.segments.audio, strict=True)
        for before, after in pairs:
            assert after.dtype == torch.float16
            assert torch.equal(after, before.half())


def test_anchors_are_those_of_preprocessing(backbone, raw_clips, encoded, stored):
    for raw, clip, again in zip(raw_clips, encoded, stored, strict=True):
        spans = list(clip.segments.spans)
        content = {"frames": raw.frames, "sample_fps": 2.0, "waveform": raw.waveform}
        wanted = encode_anchors(backbone, **content, spans=spans, num_visual=3, num_audio=2)
        for anchors, close in ((clip.segments, {"atol": 2e-5, "rtol": 0}), (again.segments, HALF)):
            found = anchors.anchors(num_visual=3, num_audio=2)
            assert list(found) == spans
            np.testing.assert_allclose(torch.stack(list(found.values())).numpy(), wanted, **close)
            assert found[spans[0]].dtype == torch.float32


def test_a_plan_of_an_encoded_clip_is_that_of_the_clip(tokenizer, vocabulary, raw_clips, encoded):
    """Places, positions and times follow the shape alone."""
    for raw, clip in zip(raw_clips, encoded, strict=True):
        media = prepare_media(raw.frames, sample_fps=raw.sample_fps, waveform=raw.waveform)
        whole, after = (PlanBuilder(tokenizer, vocabulary, m).chat_prompt("Which?").build() for m in (media, clip.clip))
        for name in ("input_ids", "kinds", "position_ids", "source"):
            assert torch.equal(getattr(whole, name), getattr(after, name)), name
        torch.testing.assert_close(whole.times_s, after.times_s, equal_nan=True)


def test_a_batch_holds_clips_of_one_sort(tokenizer, vocabulary, film, encoded):
    plans = [PlanBuilder(tokenizer, vocabulary, m).chat_prompt("Which?").build() for m in (film(), encoded[0].clip)]
    with pytest.raises(ValueError, match="either encoded clips or clips to encode, not both"):
        collate(plans)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pt is missing: encode the clips first"):
        load_encoded(tmp_path / "none.pt")
