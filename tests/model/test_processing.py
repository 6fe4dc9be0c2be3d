"""Our preparation of clips equals Hugging Face's processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.image_utils import OPENAI_CLIP_STD
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import _get_feat_extract_output_lengths
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from omni_model.processing import fit_size, log_mel, num_audio_tokens, num_mel_frames, patchify, resize_frames


def _frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures with some noise, as real ones are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 16
    waves = [np.sin(x + f) * np.cos(y * (1 + c)) for f in range(count) for c in range(3)]
    smooth = np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1)
    return np.clip(127 + 90 * smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def _hugging_face(frame: np.ndarray, **size: int) -> tuple[np.ndarray, list[int]]:
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": size["min_pixels"], "longest_edge": size["max_pixels"]})
    out = processor([frame], return_tensors="np")
    return out["pixel_values"], out["image_grid_thw"][0].tolist()


ANY = {"min_pixels": 28 * 28, "max_pixels": 1 << 30}


@pytest.mark.parametrize(("height", "width"), [(56, 56), (84, 140), (28, 196)])
def test_patches_of_a_clip_equal_the_image_processor_frame_by_frame(height, width):
    frames = _frames(4, height, width)
    patches, grid = patchify(frames)
    t, h, w = grid.tolist()
    assert (t, h, w) == (2, height // 14, width // 14)
    # The image processor repeats one picture over both times of a patch; a clip has its two frames there.
    ours = patches.view(t, h * w, 3, 2, 14, 14).numpy()
    for f, frame in enumerate(frames):
        theirs, grid_of_one = _hugging_face(frame, **ANY)
        assert grid_of_one == [1, h, w]
        theirs = theirs.reshape(h * w, 3, 2, 14, 14)
        np.testing.assert_allclose(ours[f // 2, :, :, f % 2], theirs[:, :, f % 2], atol=1e-6)


def test_an_odd_last_frame_is_repeated():
    frames = _frames(3, 28, 28)
    patches, grid = patchify(frames)
    assert grid.tolist() == [2, 2, 2]
    last = patches.view(2, 4, 3, 2, 196)[1]
    assert torch.equal(last[:, :, 0], last[:, :, 1])
    assert torch.equal(patches, patchify(np.concatenate([frames, frames[-1:]]))[0])


def test_frames_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(ValueError, match="call resize_frames first"):
        patchify(_frames(2, 56, 60))


@pytest.mark.parametrize(("height", "width"), [(120, 90), (48, 300), (200, 200)])
def test_resizing_equals_the_image_processor_within_one_grey_level(height, width):
    limits = {"min_pixels": 56 * 56, "max_pixels": 84 * 112}
    frame = _frames(1, height, width)
    resized = resize_frames(frame, **limits)
    theirs, grid = _hugging_face(frame[0], **limits)
    assert resized.dtype == np.uint8
    assert resized.shape[1:3] == (grid[1] * 14, grid[2] * 14)
    ours = patchify(np.concatenate([resized, resized]))[0].numpy()
    one_level = 1 / (255 * np.array(OPENAI_CLIP_STD).repeat(2 * 14 * 14))
    assert (np.abs(ours - theirs) / one_level).max() < 1.01
    assert (np.abs(ours - theirs) > 1e-4).mean() < 0.02


def test_frames_of_the_right_size_are_left_alone():
    frames = _frames(2, 56, 56)
    assert resize_frames(frames, min_pixels=56 * 56, max_pixels=56 * 56) is frames


def test_fitted_sizes_equal_smart_resize():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(side) for side in np.exp(rng.uniform(np.log(6), np.log(3000), 2)))
        if max(height, width) > 200 * min(height, width):
            continue
        limits = {"min_pixels": int(rng.choice([784, 3136, 128 * 784])), "max_pixels": 768 * 784}
        assert fit_size(height, width, **limits) == smart_resize(height, width, 28, **limits), (height, width)


def test_a_picture_too_long_and_thin_is_refused():
    assert fit_size(10, 2000, **ANY)
    with pytest.raises(ValueError, match="2001 x 10 px is too long and thin"):
        fit_size(10, 2001, **ANY)


def _stock_features(wave: np.ndarray, *, filled_to_s: int = 300) -> torch.Tensor:
    """Mel features of a sound as Qwen2_5OmniProcessor calls for them and keeps them."""
    settings = {"feature_size": 128, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400}
    extractor = WhisperFeatureExtractor(**settings, chunk_length=filled_to_s)
    made = extractor(
        [wave], sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    return made["input_features"][0][:, made["attention_mask"][0].bool()]


def _sound(samples: int, seed: int = 0) -> np.ndarray:
    """A tone in noise that ends in mid-swing, of a loudness of its own."""
    rng = np.random.default_rng([samples, seed])
    tone = np.sin(2 * np.pi * rng.uniform(50, 7000) * np.arange(samples) / 16_000 + 1)
    return (10 ** rng.uniform(-4, 0) * (tone + rng.normal(0, 0.1, samples))).astype(np.float32)


_ODD_LENGTHS = [160 * frames + shift for frames in (1, 2, 3, 10, 100) for shift in (-41, -40, -39, -1, 0, 1)]


def _assert_stock(samples: int, filled_to_s: int) -> None:
    wave = _sound(samples)
    ours, theirs = log_mel(wave), _stock_features(wave, filled_to_s=filled_to_s)
    assert ours.shape == theirs.shape == (128, num_mel_frames(samples)), samples
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0, msg=lambda m: f"{samples} samples: {m}")


@pytest.mark.parametrize("samples", [1, 200, 201, 479, 16_000, 37_123, 1_600_001, 4_799_799, 4_799_961, 4_800_000])
def test_log_mel_equals_the_stock_processor(samples):
    _assert_stock(samples, 300)


def test_log_mel_equals_the_stock_extractor_at_every_length():
    """Of its 300 s of silence all but the first is the same everywhere, so that three seconds will do."""
    random = np.random.default_rng(0)
    lengths = [*_ODD_LENGTHS, *random.integers(1, 1000, 100).tolist(), *random.integers(1000, 44_000, 100).tolist()]
    for samples in lengths:
        _assert_stock(samples, 3)


def test_the_loudest_window_may_lie_behind_the_last_frame_that_is_kept():
    """It sets the floor: a click in the last samples of a quiet sound is loudest where nothing is kept."""
    wave = np.full(1600, 1e-5, np.float32)
    wave[-1] = 1.0
    torch.testing.assert_close(log_mel(wave), _stock_features(wave), atol=2e-5, rtol=0)


def test_sound_after_300_seconds_is_cut_as_the_stock_processor_cuts_it():
    wave = _sound(4_800_000 + 48_000)
    ours = log_mel(wave)
    assert ours.shape == (128, 30_000)
    torch.testing.assert_close(ours, _stock_features(wave), atol=2e-5, rtol=0)
    assert torch.equal(ours, log_mel(wave[:4_800_000]))


def test_silence_has_the_stock_values():
    torch.testing.assert_close(log_mel(np.zeros(500, np.float32)), _stock_features(np.zeros(500, np.float32)))


def test_log_mel_of_several_waveforms_is_each_alone():
    waves = np.random.default_rng(0).normal(0, [[0.01], [0.5]], (2, 8000)).astype(np.float32)
    torch.testing.assert_close(log_mel(waves), torch.stack([log_mel(w) for w in waves]))


def test_token_counts_equal_hugging_faces_and_the_towers(backbone):
    tower = backbone.thinker.model.audio_tower
    for mel_frames in [*range(3, 420), 500, 3001, 30_000]:
        expected = _get_feat_extract_output_lengths(mel_frames)
        assert num_audio_tokens(mel_frames) == expected
        assert int(tower._get_feat_extract_output_lengths(torch.tensor(mel_frames))[1]) == expected
    for mel_frames in (3, 4, 199, 200, 201, 202, 203, 401):
        made = tower(torch.zeros(128, mel_frames), feature_lens=torch.tensor([mel_frames])).last_hidden_state
        assert len(made) == num_audio_tokens(mel_frames)
