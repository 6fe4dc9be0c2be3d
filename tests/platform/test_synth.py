"""Rendering the film: the fast path to tensors and the real one through mp4 and the decoder give the same clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_platform.media.benchmark import SHIFTS
from omni_platform.media.decode import decode_clip, sample_times
from omni_platform.media.scene import Scene, make_scene, make_sync_scene
from omni_platform.media.synth import SAMPLE_RATE_HZ, file_fps, render_clip, render_frames, render_waveform, write_mp4

SIDE_PX = 112
SCENES = {
    # Name: the scene, the rate that a model asks for, and how far pictures may lie apart (measured: 6.0 and 4.9).
    "shots": (make_scene(seed=2, index=0), 2.0, 7.0),
    "longer": (make_scene(seed=2, index=1, num_shots=9), 2.0, 7.0),
    "frame rate": (make_scene(seed=2, index=2), 3.0, 7.0),
    "flash first": (make_sync_scene(seed=2, index=1), 2.0, 6.0),
    "beep first": (make_sync_scene(seed=2, index=3), 2.0, 6.0),
}


def with_drift(scene: Scene) -> Scene:
    """Shapes that move clearly, so that no two moments look the same."""
    shots = (replace(shot, drift_x=0.06 if k % 2 else -0.06) for k, shot in enumerate(scene.shots))
    return replace(scene, shots=tuple(shots))


def onset_s(wave: np.ndarray, *, threshold: float, from_s: float) -> float:
    """When the sound first passes the threshold."""
    first = round(from_s * SAMPLE_RATE_HZ)
    return float(first + np.argmax(np.abs(wave[first:]) > threshold)) / SAMPLE_RATE_HZ


def flashing(frames: np.ndarray) -> list[int]:
    """Frames whose corner, which no shape reaches, is bright."""
    return np.flatnonzero(frames[:, :8, :8].mean((1, 2, 3)) > 200).tolist()


@pytest.mark.parametrize("name", SCENES)
def test_the_fast_path_gives_what_decoding_the_file_gives(name: str, tmp_path: Path) -> None:
    scene, fps, bound = SCENES[name]
    scene = with_drift(scene)
    frames, rate, wave = render_clip(scene, fps=fps, side_px=SIDE_PX)
    write_mp4(scene, tmp_path / "clip.mp4", side_px=SIDE_PX)
    real = decode_clip(tmp_path / "clip.mp4", fps=rate)

    assert real.sample_fps == rate and real.frames.shape == frames.shape
    distance = np.abs(real.frames[:, None].astype(np.int16) - frames[None]).mean((2, 3, 4))
    assert distance.argmin(1).tolist() == list(range(len(frames)))
    assert distance.diagonal().max() < bound
    assert real.waveform is not None and len(real.waveform) == len(wave)
    assert np.corrcoef(real.waveform, wave)[0, 1] > 0.99
    for tone in scene.tones:
        where = {"threshold": tone.amplitude / 4, "from_s": tone.start_s - 0.03}
        # A quarter of the amplitude is reached within the 10 ms of the fade.
        assert 0 <= onset_s(wave, **where) - tone.start_s < 0.004
        assert abs(onset_s(real.waveform, **where) - onset_s(wave, **where)) < 0.002


@pytest.mark.parametrize("index", range(4))
def test_flashes_are_in_the_same_frames_of_both_paths(index: int, tmp_path: Path) -> None:
    scene = make_sync_scene(seed=2, index=index)
    assert scene.flash is not None
    frames, rate, _ = render_clip(scene, fps=2.0, side_px=64)
    write_mp4(scene, tmp_path / "clip.mp4", side_px=64)
    real = decode_clip(tmp_path / "clip.mp4", fps=rate)
    first = round(scene.flash.start_s * 25)
    assert rate == 25.0 and len(frames) == 50
    assert flashing(frames) == flashing(real.frames) == [first, first + 1]


@pytest.mark.parametrize("num_shots", [2, 3, 5, 6, 9])
@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 8.0])
def test_both_paths_sample_the_same_times(num_shots: int, fps: float) -> None:
    scene = make_scene(seed=2, index=0, num_shots=num_shots)
    times_s, rate = sample_times(scene.duration_s, fps=fps, max_frames=256)
    frames, fast_rate, _ = render_clip(scene, fps=fps, side_px=16)
    assert fast_rate == rate
    assert np.array_equal(frames, render_frames(scene, times_s=times_s, side_px=16))


def test_noise_is_as_strong_as_asked_on_both_paths(tmp_path: Path) -> None:
    scene = replace(make_scene(seed=2, index=0), background=120)
    loud = SHIFTS["noise"]
    kinds = {"plain": {}, "strong": {"picture_noise": loud.picture_noise, "hiss": loud.hiss}}
    for name, noise in kinds.items():
        frames, _, wave = render_clip(scene, fps=2.0, side_px=SIDE_PX, **noise)
        write_mp4(scene, tmp_path / f"{name}.mp4", side_px=SIDE_PX, **noise)
        real = decode_clip(tmp_path / f"{name}.mp4")
        assert real.waveform is not None
        quiet = slice(
            round(scene.tones[0].end_s * SAMPLE_RATE_HZ) + 400, round((scene.tones[0].end_s + 0.1) * SAMPLE_RATE_HZ)
        )
        asked = (5.0, 0.003) if name == "plain" else (25.0, 0.03)
        assert (frames[:, :8].std(), wave[quiet].std()) == pytest.approx(asked, rel=0.1)
        # H.264 keeps colours at half the size: of noise of its own in each channel, that of the brightness is left.
        assert real.frames[:, :8].std() == pytest.approx(asked[0] * np.hypot(0.299, np.hypot(0.587, 0.114)), rel=0.1)
        assert np.abs(real.frames[:, :8].mean() - 120) < 2


def test_without_noise_nothing_but_the_scene_is_left() -> None:
    scene = make_scene(seed=2, index=0)
    frames = render_frames(scene, times_s=np.array([0.0, 0.5]), side_px=32, picture_noise=0.0)
    assert np.unique(frames[:, 0]).tolist() == [scene.background]
    wave = render_waveform(scene, hiss=0.0)
    sounding = sum(round(t.end_s * SAMPLE_RATE_HZ) - round(t.start_s * SAMPLE_RATE_HZ) for t in scene.tones)
    assert 0 < np.count_nonzero(wave) <= sounding


def test_files_hold_as_many_frames_as_their_scenes_need() -> None:
    assert file_fps(make_scene(seed=2, index=0)) == 8
    assert file_fps(make_sync_scene(seed=2, index=0)) == 25
