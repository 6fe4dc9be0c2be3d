"""The benchmark in one place: splits share no clip, shifts change what they say, and the configs say the same."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from omni_platform.config import load_config
from omni_platform.media.benchmark import BENCHMARK, SHIFTS, SPLIT_SEEDS, Shift, clip_of, families_of
from omni_platform.media.film import FAMILIES, ask
from omni_platform.media.film_folder import FilmConfig
from omni_platform.media.scene import Scene, World, draw_scene, make_scene
from omni_platform.media.synth import HISS, PICTURE_NOISE, render_clip

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs" / "film"
FILMS = {
    # Name: split, world and shift of the config.
    "train": ("train", "shots", None),
    "eval": ("validation", "shots", None),
    "train_synchrony": ("train", "synchrony", None),
    "validation": ("validation", "shots", None),
    "validation_synchrony": ("validation", "synchrony", None),
    "test": ("test", "shots", None),
    "test_longer": ("test", "shots", "longer"),
    "test_noise": ("test", "shots", "noise"),
    "test_synchrony": ("test", "synchrony", None),
}


def content(scene: Scene) -> tuple:
    """What a clip shows and sounds like: all but where it comes from."""
    return scene.shots, scene.tones, scene.flash, scene.background


def test_the_benchmark_asks_these_families() -> None:
    of_shots = ("colour_at_tone", "tone_at_colour", "colour_n_after_tone", "changes_between_tones", "same_shape")
    assert families_of("shots") == of_shots
    assert families_of("shots", transfer=True) == (*of_shots, "shape_at_tone")
    assert families_of("synchrony") == families_of("synchrony", transfer=True) == ("flash_before_beep",)
    assert set(BENCHMARK) <= set(FAMILIES)


@pytest.mark.parametrize("world", ["shots", "synchrony"])
def test_splits_have_no_clip_in_common(world: World) -> None:
    assert SPLIT_SEEDS == {"train": 1, "validation": 2, "test": 3}
    clips = {
        split: {content(draw_scene(world, seed=seed, index=index)) for index in range(500)}
        for split, seed in SPLIT_SEEDS.items()
    }
    assert [len(found) for found in clips.values()] == [500, 500, 500]
    assert all(not one & other for one, other in combinations(clips.values(), 2))


def test_a_clip_of_the_benchmark_is_the_scene_of_its_split_as_trained() -> None:
    clip = clip_of("validation", 7, fps=2.0, side_px=32)
    assert clip.scene == make_scene(seed=2, index=7)
    frames, fps, waveform = render_clip(clip.scene, fps=2.0, side_px=32)
    assert clip.sample_fps == fps == 2.0
    assert np.array_equal(clip.frames, frames) and np.array_equal(clip.waveform, waveform)
    assert Shift() == Shift(num_shots=6, picture_noise=PICTURE_NOISE, hiss=HISS, fps=None)


def test_a_clip_can_have_more_shots_than_the_benchmark_gives_it() -> None:
    clip = clip_of("train", 5, fps=2.0, side_px=32, num_shots=18)
    assert clip.scene == make_scene(seed=1, index=5, num_shots=18)
    assert len(clip.frames) == 36 and len(clip.waveform) == 18 * 16_000


def test_clips_of_synchrony_are_sampled_finely_enough_for_a_flash() -> None:
    clip = clip_of("test", 0, fps=2.0, side_px=32, world="synchrony")
    assert clip.scene.flash is not None and clip.scene.seed == 3
    assert (clip.frames.shape, clip.sample_fps, clip.waveform.shape) == ((50, 32, 32, 3), 25.0, (32_000,))


def test_each_shift_changes_one_thing() -> None:
    plain = clip_of("test", 4, fps=2.0, side_px=32)
    longer, noise, rate = (clip_of("test", 4, fps=2.0, side_px=32, shift=name) for name in SHIFTS)
    assert (len(plain.frames), len(longer.frames), len(noise.frames), len(rate.frames)) == (12, 18, 12, 18)
    assert (longer.scene.duration_s, longer.sample_fps, rate.scene.duration_s, rate.sample_fps) == (9.0, 2.0, 6.0, 3.0)
    assert noise.scene == rate.scene == plain.scene != longer.scene
    assert np.array_equal(rate.waveform, plain.waveform) and np.array_equal(rate.frames[0], plain.frames[0])
    # The same noise pictures, five and ten times as strong.
    quiet = ask(plain.scene, ("tones_by_second",))[0].answer.split().index("none") * 16_000
    assert noise.waveform[quiet] == pytest.approx(10 * plain.waveform[quiet])
    spreads = [clip.frames[:, :2].astype(float).std() for clip in (plain, noise)]
    assert spreads[1] / spreads[0] == pytest.approx(5, rel=0.15)


def test_what_the_benchmark_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; there are train, validation, test"):
        clip_of("dev", 0, fps=2.0, side_px=32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown shift 'shorter'; there are longer, noise, frame_rate"):
        clip_of("test", 0, fps=2.0, side_px=32, shift="shorter")
    with pytest.raises(ValueError, match="'longer' is for scenes of shots only"):
        clip_of("test", 0, fps=2.0, side_px=32, shift="longer", world="synchrony")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_the_configs_render_the_clips_of_the_benchmark(name: str) -> None:
    split, world, shift = FILMS[name]
    config = load_config(FilmConfig, CONFIGS / f"{name}.yaml")
    how = SHIFTS[shift] if shift else Shift()
    assert (config.seed, config.world, config.first_index) == (SPLIT_SEEDS[split], world, 0)
    assert (config.num_shots, config.picture_noise, config.hiss) == (how.num_shots, how.picture_noise, how.hiss)
    if name not in ("train", "eval"):  # the demo's, which ask less
        assert config.families == families_of(world, transfer=split == "test")
