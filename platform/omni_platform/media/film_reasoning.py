"""Questions whose evidence is not their answer (count, compare, go on from a moment), and one family held out.

Each maker returns None where the scene has no such question.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omni_platform.media.question import Question, after_tone, at_tone, look
from omni_platform.media.scene import SHAPES, Scene, Tone
from omni_platform.schema import TextStep

_SAME_SHAPE_POSSIBLE = 0.6
"""Share of six-shot scenes in which two of the three tones fall on the same shape: 1 - 2 ** 3 / C(6, 3)."""


def colour_n_after_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour comes one or two changes after a tone?"""
    return after_tone(scene, rng, "colour_n_after_tone", int(rng.integers(1, 3)))


def changes_between_tones(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How often does the shape change between two tones? Neighbouring shots may show the same shape."""
    first, second = _two_tones(scene, rng)
    begin, end = sorted((first.shot, second.shot))
    count = sum(scene.shots[k].shape != scene.shots[k - 1].shape for k in range(begin + 1, end + 1))
    return Question(
        family="changes_between_tones",
        text=f"How often does the shape change between the {first.name} tone and the {second.name} tone?",
        answer=str(count),
        options=tuple(str(n) for n in range(len(scene.shots))),
        trajectory=(
            TextStep(text=f"The tones: {first.name}, {second.name}"),
            look(scene, begin, end),
            TextStep(text=f" {count}. Answer: {count}"),
        ),
    )


def same_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Do two tones sound over the same shape? As often yes as no."""
    pairs = [(a, b) for i, a in enumerate(scene.tones) for b in scene.tones[i + 1 :]]
    same = [(a, b) for a, b in pairs if scene.shots[a.shot].shape == scene.shots[b.shot].shape]
    wants_same, accepted = rng.random() < 0.5, rng.random() < _SAME_SHAPE_POSSIBLE
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
            TextStep(text=f" Then: {second.name}"),
            look(scene, second.shot),
            TextStep(text=f" {answer}. Answer: {answer}"),
        ),
    )


def shape_at_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which shape is on screen when a tone sounds? Never trained on: it shows what carries over from colours."""
    return at_tone(scene, rng, "shape", SHAPES)


def _two_tones(scene: Scene, rng: np.random.Generator) -> tuple[Tone, Tone]:
    first, second = rng.permutation(len(scene.tones))[:2]
    return scene.tones[first], scene.tones[second]


REASONING: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "colour_n_after_tone": colour_n_after_tone,
    "changes_between_tones": changes_between_tones,
    "same_shape": same_shape,
    "shape_at_tone": shape_at_tone,
}
"""Families of the benchmark beside the plain cross-modal ones. None is in the toy tokenizer's corpus."""
HELD_OUT = ("shape_at_tone",)
"""Families for transfer: no training film asks them."""
