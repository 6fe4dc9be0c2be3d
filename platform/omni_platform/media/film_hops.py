"""Questions that take many hops: further on from a tone than the benchmark asks.

Not of the benchmark: a sweep asks them by `scenes.families`. No lesson of the toy base and no word of its tokenizer
comes from them. Each maker returns None where the scene has no such question.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omni_platform.media.question import Question, after_tone
from omni_platform.media.scene import Scene


def colour_far_after_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour comes three or four changes after a tone? Of six shots the last three alone can be the answer's."""
    return after_tone(scene, rng, "colour_far_after_tone", int(rng.integers(3, 5)))


HOPS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "colour_far_after_tone": colour_far_after_tone,
}
"""Families of many hops."""
