"""Questions whose evidence is not their answer (count, compare, go on from a moment), and one family held out.

Each maker returns None where the scene has no such question.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np

from omni_platform.media.question import Question, after_tone, at_tone, look
from omni_platform.media.scene import SHAPES, STEP_S, Scene, Tone
from omni_platform.schema import LookStep, TextStep


def colour_n_after_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour comes one or two changes after a tone?"""
    return after_tone(scene, rng, "colour_n_after_tone", int(rng.integers(1, 3)))


def changes_between_tones(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How often does the shape change between two tones? Neighbouring shots may show the same shape."""
    first, second = _two_tones(scene, rng)
    begin, end = sorted((first.shot, second.shot))
    shapes = [scene.shots[k].shape for k in range(begin, end + 1)]
    count = sum(a != b for a, b in pairwise(shapes))
    return Question(
        family="changes_between_tones",
        text=f"How often does the shape change between the {first.name} tone and the {second.name} tone?",
        answer=str(count),
        options=tuple(str(n) for n in range(len(scene.shots))),
        trajectory=(
            TextStep(text=f"The tones: {first.name}, {second.name}"),
            look(scene, begin, end),
            TextStep(text=f" {' '.join(shapes)}. Answer: {count}"),
        ),
    )


def same_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Do two tones sound over the same shape? As often yes as no."""
    pairs = [(a, b) for i, a in enumerate(scene.tones) for b in scene.tones[i + 1 :]]
    same = [(a, b) for a, b in pairs if scene.shots[a.shot].shape == scene.shots[b.shot].shape]
    wants_same, accepted = rng.random() < 0.5, rng.random() < _yes_for_each_no(scene)
    # A scene without such a pair could only answer no: as many questions of the other answer are left out.
    chosen = same if wants_same else [pair for pair in pairs if pair not in same and accepted]
    if not chosen:
        return None
    first, second = chosen[int(rng.integers(len(chosen)))]
    answer = "yes" if wants_same else "no"
    return Question(
        family="same_shape",
        text=f"Is the shape at the {first.name} tone the same as at the {second.name} tone?",
        answer=answer,
        options=("yes", "no"),
        trajectory=(
            TextStep(text=f"The tone: {first.name}"),
            look(scene, first.shot),
            TextStep(text=f" {scene.shots[first.shot].shape}. The tone: {second.name}"),
            look(scene, second.shot),
            TextStep(text=f" {scene.shots[second.shot].shape}. Answer: {answer}"),
        ),
    )


def shape_at_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which shape is on screen when a tone sounds? Never trained on: it shows what carries over from colours."""
    return at_tone(scene, rng, "shape", SHAPES)


def flash_before_beep(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Does a flash come before or after its beep? 80 to 320 ms lie between them."""
    if scene.flash is None:
        return None
    flash_s, beep_s = scene.flash.start_s, scene.tones[0].start_s
    answer = "before" if flash_s < beep_s else "after"
    start_s, end_s = min(flash_s, beep_s) - STEP_S, max(flash_s, beep_s) + 2 * STEP_S
    steps = f"flash {round(flash_s / STEP_S)} beep {round(beep_s / STEP_S)}"
    return Question(
        family="flash_before_beep",
        text="Is the flash before or after the beep?",
        answer=answer,
        options=("before", "after"),
        trajectory=(
            TextStep(text="The flash and the beep:"),
            LookStep(start_s=round(max(start_s, 0.0), 3), end_s=round(min(end_s, scene.duration_s), 3)),
            TextStep(text=f" {steps}. Answer: {answer}"),
        ),
    )


def _yes_for_each_no(scene: Scene) -> float:
    """For one drawing of tones over these shots that leaves two different shapes, how many leave two that are the same?

    0.6 with six shots: 12 drawings of 20 hit a shape twice, all 20 hit different ones.
    """
    drawings = [set(shapes) for shapes in combinations((shot.shape for shot in scene.shots), len(scene.tones))]
    different = sum(len(shapes) > 1 for shapes in drawings)
    return sum(len(shapes) < len(scene.tones) for shapes in drawings) / max(different, 1)


def _two_tones(scene: Scene, rng: np.random.Generator) -> tuple[Tone, Tone]:
    first, second = rng.permutation(len(scene.tones))[:2]
    return scene.tones[first], scene.tones[second]


REASONING: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "colour_n_after_tone": colour_n_after_tone,
    "changes_between_tones": changes_between_tones,
    "same_shape": same_shape,
    "shape_at_tone": shape_at_tone,
}
"""Families of the benchmark beside the plain cross-modal ones."""
SYNCHRONY: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {"flash_before_beep": flash_before_beep}
"""Families about scenes of synchrony."""
HELD_OUT = ("shape_at_tone",)
"""Families for transfer: no training film asks them."""
