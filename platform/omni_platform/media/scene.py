"""The world of the film: a row of shots, one coloured shape in each, and a few tones, all with known times.

No colour repeats within a scene and each tone sounds once, so that a question about *when* has one answer, and that
answer needs both senses. Everything is a pure function of (version, seed, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FILM_VERSION = 1
COLOURS_RGB = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (50, 80, 225),
    "yellow": (235, 210, 50),
    "purple": (150, 50, 185),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
TONES_HZ = {"low": 300.0, "mid": 900.0, "high": 2700.0}
COLOURS, TONES = tuple(COLOURS_RGB), tuple(TONES_HZ)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One coloured shape; positions and sizes are fractions of the picture's side."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    drift_x: float
    """How far the shape moves to the right over the shot."""


@dataclass(frozen=True, kw_only=True)
class Tone:
    """One burst of sound inside one shot."""

    name: str
    shot: int
    frequency_hz: float
    start_s: float
    end_s: float
    amplitude: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A clip before it is rendered."""

    seed: int
    index: int
    shot_s: float
    shots: tuple[Shot, ...]
    tones: tuple[Tone, ...]
    background: int
    """Grey level of the backdrop, 0-255."""

    @property
    def duration_s(self) -> float:
        return self.shot_s * len(self.shots)

    def tone(self, name: str) -> Tone | None:
        """The burst of that name, or None where it does not sound."""
        return next((tone for tone in self.tones if tone.name == name), None)

    def tone_in(self, shot: int) -> str:
        """The tone that sounds in a shot, or `none`."""
        return next((tone.name for tone in self.tones if tone.shot == shot), "none")

    def shot_of(self, colour: str) -> int:
        """The shot that shows a colour."""
        return next(k for k, shot in enumerate(self.shots) if shot.colour == colour)


def make_scene(*, seed: int, index: int, num_shots: int = 6, shot_s: float = 1.0) -> Scene:
    """Draw scene `index` of the film with this seed.

    Raises `ValueError` where there are fewer colours than shots, because no colour may repeat.
    """
    if not 2 <= num_shots <= len(COLOURS):
        raise ValueError(f"num_shots must lie in 2..{len(COLOURS)} (no colour repeats), got {num_shots}")
    rng = np.random.default_rng([FILM_VERSION, seed, index])
    colours = rng.permutation(COLOURS)[:num_shots]
    shapes = rng.permutation(np.repeat(rng.choice(SHAPES, 3, replace=False), 2))[:num_shots]
    shots = tuple(
        Shot(
            colour=str(colour),
            shape=str(shape),
            x=float(rng.uniform(0.32, 0.68)),
            y=float(rng.uniform(0.32, 0.68)),
            radius=float(rng.uniform(0.2, 0.3)),
            drift_x=float(rng.uniform(-0.06, 0.06)),
        )
        for colour, shape in zip(colours, shapes, strict=True)
    )
    where = rng.permutation(num_shots)[: len(TONES)]
    tones = tuple(_make_tone(rng, name, int(shot), shot_s) for name, shot in zip(TONES, where, strict=False))
    background = int(rng.integers(15, 90))
    return Scene(seed=seed, index=index, shot_s=shot_s, shots=shots, tones=tones, background=background)


def _make_tone(rng: np.random.Generator, name: str, shot: int, shot_s: float) -> Tone:
    length_s = rng.uniform(0.3, 0.5) * shot_s
    start_s = shot * shot_s + rng.uniform(0.05 * shot_s, 0.95 * shot_s - length_s)
    return Tone(
        name=name,
        shot=shot,
        frequency_hz=float(TONES_HZ[name] * rng.uniform(0.9, 1.1)),
        start_s=float(start_s),
        end_s=float(start_s + length_s),
        amplitude=float(rng.uniform(0.15, 0.5)),
    )
