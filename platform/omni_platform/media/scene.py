"""The world of the film: a row of shots, one coloured shape in each, and a few tones, all with known times.

Each tone sounds once, and no colour repeats within the six shots of an ordinary scene, so that a question about *when*
has one answer, and that answer needs both senses. Scenes of synchrony hold one shot, one flash and one beep. Everything
is a pure function of (version, seed, index).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

FILM_VERSION = 2
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
MAX_SHOTS = 24
STEP_S = 0.08
"""The grid of scenes of synchrony: two frames at 25 a second."""
SYNC_STEPS = 25
SYNC_OFFSETS = (1, 2, 3, 4)
"""How many steps lie between a flash and its beep: 80 to 320 ms."""
World = Literal["shots", "synchrony"]
"""The two kinds of scenes."""


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
class Flash:
    """The backdrop turns bright for a moment."""

    start_s: float
    end_s: float


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
    flash: Flash | None = None
    """Of scenes of synchrony, whose one tone is the flash's beep."""

    @property
    def duration_s(self) -> float:
        return self.shot_s * len(self.shots)

    def tone(self, name: str) -> Tone | None:
        """The burst of that name, or None where it does not sound."""
        return next((tone for tone in self.tones if tone.name == name), None)

    def tone_in(self, shot: int) -> str:
        """The tone that sounds in a shot, or `none`."""
        return next((tone.name for tone in self.tones if tone.shot == shot), "none")

    @property
    def shots_of_unique_colour(self) -> list[int]:
        """Shots whose colour no other shot shows: all of them in scenes of at most six shots."""
        colours = [shot.colour for shot in self.shots]
        return [k for k, colour in enumerate(colours) if colours.count(colour) == 1]


def draw_scene(world: World, *, seed: int, index: int, num_shots: int = 6, shot_s: float = 1.0) -> Scene:
    """Draw scene `index` of either world; number and length of shots are for scenes of shots only."""
    if world == "synchrony":
        return make_sync_scene(seed=seed, index=index)
    return make_scene(seed=seed, index=index, num_shots=num_shots, shot_s=shot_s)


def make_scene(*, seed: int, index: int, num_shots: int = 6, shot_s: float = 1.0) -> Scene:
    """Draw scene `index` of the film with this seed.

    Up to six shots have six different colours; longer scenes go on with colours that differ from their neighbour's.
    Raises `ValueError` for fewer than 2 shots or more than 24.
    """
    if not 2 <= num_shots <= MAX_SHOTS:
        raise ValueError(f"num_shots must lie in 2..{MAX_SHOTS}, got {num_shots}")
    rng = np.random.default_rng([FILM_VERSION, seed, index])
    shots = tuple(
        _make_shot(rng, colour, shape)
        for colour, shape in zip(_draw_colours(rng, num_shots), _draw_shapes(rng, num_shots), strict=True)
    )
    where = rng.permutation(num_shots)[: len(TONES)]
    tones = tuple(_make_tone(rng, name, int(shot), shot_s) for name, shot in zip(TONES, where, strict=False))
    background = int(rng.integers(15, 90))
    return Scene(seed=seed, index=index, shot_s=shot_s, shots=shots, tones=tones, background=background)


def make_sync_scene(*, seed: int, index: int) -> Scene:
    """Draw scene `index` of the film of synchrony: two seconds with a flash and a beep, 80 to 320 ms apart.

    Both last 80 ms. The flash begins on a whole step of 80 ms, the beep within 10 ms of one.
    """
    rng = np.random.default_rng([FILM_VERSION, seed, index, 1_000_003])
    colour, shape = str(rng.choice(COLOURS)), str(rng.choice(SHAPES))
    offset = int(rng.choice(SYNC_OFFSETS)) * int(rng.choice([-1, 1]))
    margin = max(SYNC_OFFSETS) + 1
    flash = int(rng.integers(margin, SYNC_STEPS - margin))
    beep_s = (flash + offset) * STEP_S + float(rng.uniform(-0.01, 0.01))
    name = str(rng.choice(TONES))
    beep = Tone(
        name=name,
        shot=0,
        frequency_hz=float(TONES_HZ[name] * rng.uniform(0.9, 1.1)),
        start_s=beep_s,
        end_s=beep_s + STEP_S,
        amplitude=float(rng.uniform(0.15, 0.5)),
    )
    return Scene(
        seed=seed,
        index=index,
        shot_s=SYNC_STEPS * STEP_S,
        shots=(_make_shot(rng, colour, shape),),
        tones=(beep,),
        background=int(rng.integers(15, 90)),
        flash=Flash(start_s=flash * STEP_S, end_s=(flash + 1) * STEP_S),
    )


def _draw_colours(rng: np.random.Generator, count: int) -> list[str]:
    colours = [str(colour) for colour in rng.permutation(COLOURS)[:count]]
    while len(colours) < count:
        colours.append(str(rng.choice([colour for colour in COLOURS if colour != colours[-1]])))
    return colours


def _draw_shapes(rng: np.random.Generator, count: int) -> list[str]:
    """Three of the four shapes, each as often as the others."""
    three = rng.choice(SHAPES, 3, replace=False)
    return [str(shape) for shape in rng.permutation(np.repeat(three, -(-count // 3)))[:count]]


def _make_shot(rng: np.random.Generator, colour: str, shape: str) -> Shot:
    return Shot(
        colour=colour,
        shape=shape,
        x=float(rng.uniform(0.4, 0.6)),
        y=float(rng.uniform(0.4, 0.6)),
        radius=float(rng.uniform(0.28, 0.4)),
        drift_x=float(rng.uniform(-0.06, 0.06)),
    )


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
