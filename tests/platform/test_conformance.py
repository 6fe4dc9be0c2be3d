"""Every kind of clip gives the pictures and the sound that were put into it, whichever decoder reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clip_kinds import KINDS
from counted_clips import Truth, hear_beeps, read_number

from omni_platform.media.decode import DecodedClip, Decoder, MediaError, decode_clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Truth]]:
    """A clip by its kind, made once."""
    folder, made = tmp_path_factory.mktemp("counted"), {}

    def get(name: str) -> tuple[Path, Truth]:
        if name not in made:
            path = folder / f"{len(made)}.{KINDS[name].suffix}"
            made[name] = path, KINDS[name].make(path)
        return made[name]

    return get


def _numbers(clip: DecodedClip, truth: Truth) -> list[int]:
    return [read_number(np.rot90(frame, truth.turned)) for frame in clip.frames]


@pytest.mark.parametrize("name", KINDS)
def test_pictures_and_beeps_are_those_of_the_truth(clips, name):
    path, truth = clips(name)
    clip = decode_clip(path, fps=25.0)
    assert clip.duration_s == pytest.approx(truth.end_s, abs=0.041)
    times_s = np.arange(len(clip.frames)) / clip.sample_fps
    assert _numbers(clip, truth) == [truth.shown_at(t) for t in times_s]
    assert len(clip.frames) == 2 * round(clip.duration_s * 25 / 2)
    if not truth.beeps_s:
        assert clip.waveform is None
        return
    assert clip.waveform is not None and len(clip.waveform) == round(clip.duration_s * 16_000)
    assert hear_beeps(clip.waveform) == pytest.approx(truth.beeps_s, abs=0.020)


@pytest.mark.parametrize("name", KINDS)
def test_few_frames_of_a_clip_are_those_of_the_truth(clips, name):
    path, truth = clips(name)
    clip = decode_clip(path, fps=25.0, max_frames=7)
    assert len(clip.frames) == 6 and clip.sample_fps == pytest.approx(6 / clip.duration_s)
    assert _numbers(clip, truth) == [truth.shown_at(i / clip.sample_fps) for i in range(6)]


@pytest.mark.parametrize("name", KINDS)
def test_decord_is_chosen_where_it_gives_the_same_bytes(clips, name):
    path, _ = clips(name)
    if not KINDS[name].exact:
        with pytest.raises(MediaError) as error:
            decode_clip(path, decoder="decord")
        assert error.value.reason == "not_exact"
    for fps, max_frames in ((25.0, 256), (3.0, 256), (25.0, 6)):
        reference = decode_clip(path, fps=fps, max_frames=max_frames)
        decoders: tuple[Decoder, ...] = ("auto", "decord") if KINDS[name].exact else ("auto",)
        for decoder in decoders:
            clip = decode_clip(path, decoder=decoder, fps=fps, max_frames=max_frames)
            assert np.array_equal(clip.frames, reference.frames)
            assert (clip.sample_fps, clip.duration_s) == (reference.sample_fps, reference.duration_s)
            assert (clip.waveform is None) == (reference.waveform is None)
            if clip.waveform is not None and reference.waveform is not None:
                assert np.array_equal(clip.waveform, reference.waveform)
