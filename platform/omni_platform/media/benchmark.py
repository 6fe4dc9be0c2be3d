"""The benchmark of the film, in one place: what is asked, which clips are for what, and how the test is shifted."""

# Shapes in names: F = frames, H = W = picture side in pixels, N = audio samples.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from omni_platform.media.film import world_of
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.scene import Scene, World, draw_scene
from omni_platform.media.synth import HISS, PICTURE_NOISE, render_clip

BENCHMARK = (
    "colour_at_tone",
    "tone_at_colour",
    "colour_n_after_tone",
    "changes_between_tones",
    "same_shape",
    "flash_before_beep",
)
"""The families that are taught and asked. Those of `HELD_OUT` are asked only, to see what carries over."""

Split = Literal["train", "validation", "test"]
SPLIT_SEEDS: dict[Split, int] = {"train": 1, "validation": 2, "test": 3}
"""Films of different seeds have no clip in common. Settings are chosen on validation; the test is for the last word."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How a test differs from what was trained on; what is not named is as in training."""

    num_shots: int = 6
    picture_noise: float = PICTURE_NOISE
    """Spread of the noise over the pictures, in grey levels."""
    hiss: float = HISS
    """Spread of the noise under the tones, as an amplitude."""
    fps: float | None = None
    """Frames sampled a second; None = as many as in training."""


SHIFTS: dict[str, Shift] = {
    "longer": Shift(num_shots=9),
    "noise": Shift(picture_noise=25.0, hiss=0.03),
    "frame_rate": Shift(fps=3.0),
}
"""Shifts of scenes of shots, by name."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkClip:
    """One clip of the benchmark, rendered straight to tensors."""

    scene: Scene
    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    sample_fps: float
    waveform: np.ndarray
    """float32 (N,) at 16 kHz."""


def clip_of(
    split: Split,
    index: int,
    *,
    fps: float,
    side_px: int,
    world: World = "shots",
    shift: str | None = None,
    num_shots: int | None = None,
) -> BenchmarkClip:
    """Clip `index` of a split, as a model that samples `fps` frames a second would be given it.

    `num_shots` makes scenes of shots longer or shorter than the shift says. Scenes of synchrony are sampled at 25
    frames a second whatever `fps` says. Raises `ValueError` for an unknown split
    or shift, and for a shift of scenes of synchrony.
    """
    if split not in SPLIT_SEEDS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLIT_SEEDS)}")
    how = _shift(shift, world)
    scene = draw_scene(world, seed=SPLIT_SEEDS[split], index=index, num_shots=num_shots or how.num_shots)
    frames, sample_fps, waveform = render_clip(
        scene, fps=how.fps or fps, side_px=side_px, picture_noise=how.picture_noise, hiss=how.hiss
    )
    return BenchmarkClip(scene=scene, frames=frames, sample_fps=sample_fps, waveform=waveform)


def families_of(world: World, *, transfer: bool = False) -> tuple[str, ...]:
    """The benchmark's families about one kind of scenes; with `transfer` those that no training asks as well."""
    asked = (*BENCHMARK, *HELD_OUT) if transfer else BENCHMARK
    return tuple(family for family in asked if world_of(family) == world)


def _shift(name: str | None, world: World) -> Shift:
    if name is None:
        return Shift()
    if name not in SHIFTS:
        raise ValueError(f"unknown shift {name!r}; there are {', '.join(SHIFTS)}")
    if world != "shots":
        raise ValueError(f"the shift {name!r} is for scenes of shots only; ask for world='shots' or leave it out")
    return SHIFTS[name]
