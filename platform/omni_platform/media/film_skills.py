"""Captions and single lookups: what a model must be able to do before questions across the senses are learnable.

Each maker returns None where the scene has no such question. They have no trajectory: they are taught to the toy base.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omni_platform.media.question import Question, caption
from omni_platform.media.scene import COLOURS, SHAPES, STEP_S, Scene


def colours_and_tones(scene: Scene, rng: np.random.Generator) -> Question | None:
    words = [w for k, shot in enumerate(scene.shots) for w in (shot.colour, scene.tone_in(k))]
    return caption("colours_and_tones", "List each colour and its tone.", words)


def colours_and_shapes(scene: Scene, rng: np.random.Generator) -> Question | None:
    words = [w for shot in scene.shots for w in (shot.colour, shot.shape)]
    return caption("colours_and_shapes", "List each colour and its shape.", words)


def tones_by_second(scene: Scene, rng: np.random.Generator) -> Question | None:
    return caption("tones_by_second", "List the tones.", [scene.tone_in(k) for k in range(len(scene.shots))])


def colour_by_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    words = [w for t in scene.tones for w in (t.name, scene.shots[t.shot].colour)]
    return caption("colour_by_tone", "List the colour of each tone.", words)


def tone_by_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    shown = _by_colour(scene)
    words = [w for k in shown for w in (scene.shots[k].colour, scene.tone_in(k))]
    return caption("tone_by_colour", "List the tone of each colour.", words)


def shape_by_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    words = [w for k in _by_colour(scene) for w in (scene.shots[k].colour, scene.shots[k].shape)]
    return caption("shape_by_colour", "List the shape of each colour.", words)


def second_by_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    shown = _by_colour(scene)
    words = [w for k in shown for w in (scene.shots[k].colour, str(k + 1))]
    return caption("second_by_colour", "List the second of each colour.", words)


def colour_at_second(scene: Scene, rng: np.random.Generator) -> Question | None:
    k = int(rng.integers(len(scene.shots)))
    return Question(
        family="colour_at_second",
        text=f"Which colour is on screen in second {k + 1}?",
        answer=scene.shots[k].colour,
        options=COLOURS,
    )


def second_of_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    tone = scene.tones[int(rng.integers(len(scene.tones)))]
    return Question(
        family="second_of_tone",
        text=f"In which second does the {tone.name} tone sound?",
        answer=str(tone.shot + 1),
    )


def second_of_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    k = _any_unique(scene, rng)
    if k is None:
        return None
    return Question(
        family="second_of_colour",
        text=f"In which second is the shape {scene.shots[k].colour}?",
        answer=str(k + 1),
    )


def colour_then_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A single lookup that says its key first: a bridge from keyed lists to bare answers."""
    k = _any_unique(scene, rng)
    if k is None:
        return None
    colour = scene.shots[k].colour
    return caption("colour_then_tone", f"Name the tone of the {colour} shape.", [colour, scene.tone_in(k)])


def colour_then_second(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The same bridge for the second in which a colour is on screen."""
    k = _any_unique(scene, rng)
    if k is None:
        return None
    colour = scene.shots[k].colour
    return caption("colour_then_second", f"Name the second of the {colour} shape.", [colour, str(k + 1)])


def shape_of_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    k = _any_unique(scene, rng)
    if k is None:
        return None
    shot = scene.shots[k]
    return Question(family="shape_of_colour", text=f"Which shape is {shot.colour}?", answer=shot.shape, options=SHAPES)


def next_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour follows another? None after the last."""
    known = [k for k in scene.shots_of_unique_colour if k + 1 < len(scene.shots)]
    if not known:
        return None
    k = known[int(rng.integers(len(known)))]
    return Question(
        family="next_colour",
        text=f"Which colour follows {scene.shots[k].colour}?",
        answer=scene.shots[k + 1].colour,
        options=COLOURS,
    )


def flash_step(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.flash is None:
        return None
    step = round(scene.flash.start_s / STEP_S)
    return Question(family="flash_step", text="In which step is the flash?", answer=str(step))


def beep_step(scene: Scene, rng: np.random.Generator) -> Question | None:
    if scene.flash is None:
        return None
    step = round(scene.tones[0].start_s / STEP_S)
    return Question(family="beep_step", text="In which step is the beep?", answer=str(step))


def _by_colour(scene: Scene) -> list[int]:
    """Shots of unique colours in the order in which colours are named everywhere."""
    return sorted(scene.shots_of_unique_colour, key=lambda k: COLOURS.index(scene.shots[k].colour))


def _any_unique(scene: Scene, rng: np.random.Generator) -> int | None:
    """One of the shots whose colour is shown once; None in long scenes that show every colour twice."""
    known = scene.shots_of_unique_colour
    return known[int(rng.integers(len(known)))] if known else None


Maker = Callable[[Scene, np.random.Generator], Question | None]
SKILLS: dict[str, Maker] = {
    "colours_and_tones": colours_and_tones,
    "colours_and_shapes": colours_and_shapes,
    "tones_by_second": tones_by_second,
    "colour_by_tone": colour_by_tone,
    "tone_by_colour": tone_by_colour,
    "shape_by_colour": shape_by_colour,
    "second_by_colour": second_by_colour,
    "colour_at_second": colour_at_second,
    "second_of_tone": second_of_tone,
    "second_of_colour": second_of_colour,
    "shape_of_colour": shape_of_colour,
    "next_colour": next_colour,
}
"""Captions and single lookups in scenes of shots."""
BRIDGES: dict[str, Maker] = {"colour_then_tone": colour_then_tone, "colour_then_second": colour_then_second}
"""Single lookups that repeat their key; used late in the curriculum only."""
SYNC_SKILLS: dict[str, Maker] = {"flash_step": flash_step, "beep_step": beep_step}
"""What either sense knows in scenes of synchrony."""
