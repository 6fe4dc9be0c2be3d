"""Questions that take many hops: further on from a tone, and along a chain that only what is shown can tell.

Not of the benchmark: a sweep asks them by `scenes.families`. No lesson of the toy base and no word of its tokenizer
comes from them. Each maker returns None where the scene has no such question.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omni_platform.media.question import Question, after_tone, look
from omni_platform.media.scene import COLOURS, Scene
from omni_platform.schema import Step, TextStep

_HOPS = ("same shape", "next", "same shape", "next")
"""Where a chain goes: to the other shot with the same shape, to the next shot, and so on."""


def colour_far_after_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour comes three or four changes after a tone?"""
    return after_tone(scene, rng, "colour_far_after_tone", int(rng.integers(3, 5)))


def colour_along_shapes(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour is at the end of three or four hops from a tone, every other one to the shot of the same shape?

    Shots are equally long, so "N changes on" can be reckoned; which shot has the same shape has to be seen.
    """
    hops = _HOPS[: int(rng.integers(3, 5))]
    chains = [(tone, chain) for tone in scene.tones if (chain := _follow(scene, tone.shot, hops)) is not None]
    if not chains:
        return None
    tone, chain = chains[int(rng.integers(len(chains)))]
    steps: list[Step] = [TextStep(text=f"The tone: {tone.name}"), look(scene, chain[0])]
    for hop, shot, after in zip(hops, chain, chain[1:], strict=False):
        steps += [TextStep(text=f" {_named(scene, shot)}. {hop.capitalize()}:"), look(scene, after)]
    answer = scene.shots[chain[-1]].colour
    steps.append(TextStep(text=f" {_named(scene, chain[-1])}. Answer: {answer}"))
    return Question(
        family="colour_along_shapes",
        text=f"From the {tone.name} tone: {', '.join(hops)}. Which colour?",
        answer=answer,
        options=COLOURS,
        trajectory=tuple(steps),
    )


def _follow(scene: Scene, shot: int, hops: tuple[str, ...]) -> list[int] | None:
    """The shots of a chain from its first on; None where a shot has no next one, or not one other of its shape."""
    chain = [shot]
    for hop in hops:
        here = chain[-1]
        if hop == "next":
            onwards = [here + 1] if here + 1 < len(scene.shots) else []
        else:
            shape = scene.shots[here].shape
            onwards = [k for k, other in enumerate(scene.shots) if k != here and other.shape == shape]
        if len(onwards) != 1:
            return None
        chain += onwards
    return chain


def _named(scene: Scene, shot: int) -> str:
    return f"{scene.shots[shot].colour} {scene.shots[shot].shape}"


HOPS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "colour_far_after_tone": colour_far_after_tone,
    "colour_along_shapes": colour_along_shapes,
}
"""Families of many hops."""
