"""Anchors are the model's own features of a segment, encoded as a clip of its own and pooled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from omni_model.anchors import AnchorEncoder, build_clip_encoder, cut_segment, encode_anchors, encode_each
from omni_model.batch import join_media
from omni_model.folder import Preparation
from omni_model.lengths import media_of_shape
from omni_model.pooling import norm_weighted_pool, pool_segments
from omni_model.processing import log_mel
from omni_model.prompt import prompt_template
from omni_model.sequence import prepare_media
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform


@pytest.fixture(scope="module")
def encoder(backbone, tokenizer, vocabulary) -> AnchorEncoder:
    return AnchorEncoder(
        backbone=backbone,
        preparation=Preparation(),
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        fingerprint="toy",
    )


@pytest.fixture(scope="module")
def anchors_of(backbone):
    """`anchors_of(**clip, spans=...)`: for three visual and two audio slots, unless told."""
    return partial(encode_anchors, backbone, num_visual=3, num_audio=2)


@pytest.fixture(scope="module")
def clip() -> dict:
    scene = make_scene(seed=3, index=8, num_shots=4)
    frames = render_frames(scene, times_s=np.arange(8) / 2, side_px=56)
    return {"frames": frames, "sample_fps": 2.0, "waveform": render_waveform(scene)}


def test_an_anchor_is_the_segment_encoded_alone_and_pooled(anchors_of, backbone, clip):
    spans = [(1.0, 2.0), (0.0, 3.0), (2.5, 4.0)]
    anchors = anchors_of(**clip, spans=spans)
    assert anchors.shape == (3, 5, 64)
    assert anchors.dtype == np.float32
    for anchor, (start_s, end_s) in zip(anchors, spans, strict=True):
        frames = clip["frames"][round(2 * start_s) : round(2 * end_s)]
        sound = clip["waveform"][round(16_000 * start_s) : round(16_000 * end_s)]
        media = prepare_media(frames, sample_fps=2.0, waveform=sound)
        with torch.no_grad():
            encoded = backbone.encode(join_media([media]))
        expected = torch.cat([norm_weighted_pool(encoded.visual_ND, 3), norm_weighted_pool(encoded.audio_ND, 2)])
        np.testing.assert_allclose(anchor, expected.numpy(), atol=2e-5)


def test_segments_do_not_know_each_other(anchors_of, clip):
    spans = [(0.0, 1.0), (1.0, 4.0)]
    both = anchors_of(**clip, spans=spans)
    for anchor, span in zip(both, spans, strict=True):
        np.testing.assert_allclose(anchor, anchors_of(**clip, spans=[span])[0], atol=2e-5)


def test_without_sound_audio_anchors_are_zeros(anchors_of, clip):
    anchors = anchors_of(**{**clip, "waveform": None}, spans=[(0.0, 2.0)])
    assert anchors[0, :3].any()
    assert not anchors[0, 3:].any()
    assert anchors_of(**clip, spans=[]).shape == (0, 5, 64)


def test_a_short_or_late_segment_still_has_frames(anchors_of, clip):
    """At least one temporal patch: two frames, the clip's last ones where it ends."""
    for span in ((0.2, 0.3), (3.9, 4.0)):
        anchors = anchors_of(**clip, spans=[span])
        assert np.isfinite(anchors).all()
        assert anchors[0, :3].any()
    last = anchors_of(**clip, spans=[(3.9, 4.0)])[0, :3]
    np.testing.assert_allclose(last, anchors_of(**clip, spans=[(3.0, 4.0)])[0, :3], atol=2e-5)


def test_frames_are_prepared_as_the_model_wants_them(encoder):
    frames = np.zeros((2, 100, 60, 3), np.uint8)
    assert encoder.prepare_frames(frames).shape == (2, 56, 28, 3)


@pytest.mark.parametrize(("num_visual", "num_audio"), [(1, 1), (3, 2), (5, 25), (32, 8), (8, 0)])
def test_what_is_stored_of_a_segment_gives_the_anchors_of_any_number_of_slots(
    encoder, anchors_of, clip, num_visual, num_audio
):
    """Segments of a second or three have fewer than 128 visual and 64 audio features, or are pooled."""
    spans = [(0.0, 1.0), (1.0, 4.0)]
    slots = {"num_visual": num_visual, "num_audio": num_audio}
    segments = encoder.segments(**clip, spans=spans)
    assert [len(s.visual.values) for s in segments] == [4, 12]
    assert [(s.audio.num_features, len(s.audio.values)) for s in segments] == [(25, 25), (75, 63)]
    wanted = anchors_of(**clip, spans=spans, **slots)
    found = pool_segments(segments[:1], **slots, width=64).numpy()
    assert np.array_equal(found[0], wanted[0])  # to the bit
    if num_audio in (0, 1, 2, 8):  # these divide 32
        found = pool_segments(segments, **slots, width=64).numpy()
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="give 1, 2, 4, 8, 16, 32 slots and not 25"):
            pool_segments(segments, **slots, width=64)


def test_half_precision_stores_three_digits_in_half_the_room(encoder, anchors_of, clip):
    segments = replace(encoder, dtype="float16").segments(**clip, spans=[(1.0, 4.0)])
    assert segments[0].visual.values.dtype == segments[0].audio.values.dtype == np.float16
    wanted = anchors_of(**clip, spans=[(1.0, 4.0)])
    found = pool_segments(segments, num_visual=3, num_audio=2, width=64).numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


def test_the_fingerprint_follows_towers_and_shape(new_backbone, tokenizer, tmp_path):
    def fingerprint(seed: int = 0, head: float = 1.0, *, stored=None, **preparation) -> str:
        backbone = new_backbone(seed=seed)
        with torch.no_grad():
            backbone.thinker.lm_head.weight *= head
        folder = tmp_path / f"{seed}-{head}"
        backbone.thinker.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        given = {"preparation": Preparation(**preparation), **(stored or {})}
        encoder = build_clip_encoder(model_name_or_path=str(folder), **given)
        assert encoder.dim == 64
        return encoder.fingerprint

    first = fingerprint()
    # What comes after the towers shapes no segment, and the prompt does not either.
    assert first == fingerprint(head=2.0) == fingerprint(prompt=prompt_template("open", system_prompt="Look."))
    others = {fingerprint(seed=1), fingerprint(video_max_pixels=9 * 784)}
    storage = ({"visual_bins": 32}, {"audio_bins": 8}, {"dtype": "float16"})
    others |= {fingerprint(stored=changed) for changed in storage}
    assert len(others - {first}) == 5


def test_moments_of_a_few_milliseconds_have_anchors_beside_ordinary_ones(encoder, anchors_of, clip):
    """A sound shorter than an audio token counts as followed by silence, and so does one after the clip's sound."""
    spans = [(1.0, 2.0), (1.0, 1.001), (1.0, 1.00001), (3.9999, 4.0), (0.5, 0.52), (3.0, 4.0)]
    content = clip | {"waveform": clip["waveform"][: 3 * 16_000]}
    anchors = anchors_of(**content, spans=spans)
    assert anchors.shape == (6, 5, 64) and np.isfinite(anchors).all()
    for anchor, (start_s, end_s) in zip(anchors, spans, strict=True):
        sound = content["waveform"][round(16_000 * start_s) : round(16_000 * end_s)]
        padded = np.concatenate([sound, np.zeros(max(0, 321 - len(sound)), np.float32)])
        media = cut_segment(content["frames"], 2.0, None, (start_s, end_s))
        assert media.mel is None
        with torch.no_grad():
            audio = encoder.backbone.encode(join_media([replace(media, mel=log_mel(padded))])).audio_ND
        assert len(audio) >= 1
        np.testing.assert_allclose(anchor[3:], norm_weighted_pool(audio, 2).numpy(), atol=2e-5)


@pytest.mark.parametrize("num_samples", [0, 1, 200, 320, 321, 481, 16_000])
def test_a_clip_with_hardly_any_sound_goes_through_the_towers_with_others(encoder, clip, num_samples):
    short = prepare_media(clip["frames"], sample_fps=2.0, waveform=clip["waveform"][:num_samples])
    usual = prepare_media(clip["frames"], sample_fps=2.0, waveform=clip["waveform"])
    ((_, alone),) = encode_each(encoder.backbone, [usual])
    (_, before), (_, heard), (_, after) = encode_each(encoder.backbone, [usual, short, usual])
    torch.testing.assert_close(before, alone, atol=2e-5, rtol=0)
    torch.testing.assert_close(after, alone, atol=2e-5, rtol=0)
    assert len(heard) == short.num_audio_tokens == {16_000: 25}.get(num_samples, 1)
    shape = (len(clip["frames"]), 56, 56)
    assert media_of_shape(shape, sample_fps=2.0, num_samples=num_samples).num_audio_tokens == len(heard)
