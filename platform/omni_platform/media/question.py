"""A question about a scene of the film, and the pieces that makers of questions share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omni_platform.media.scene import COLOURS, Scene
from omni_platform.schema import LookStep, Step, TextStep

_CHANGES = ("one change", "two changes", "three changes", "four changes")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene, its answer and the trajectory that leads there."""

    family: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    trajectory: tuple[Step, ...] = ()


def look(scene: Scene, shot: int, last_shot: int | None = None) -> LookStep:
    """A look at a shot, or at all shots up to and with `last_shot`."""
    end = shot if last_shot is None else last_shot
    return LookStep(start_s=shot * scene.shot_s, end_s=(end + 1) * scene.shot_s)


def caption(family: str, text: str, words: list[str]) -> Question:
    """A question that is answered by a list of words, without a trajectory."""
    return Question(family=family, text=text, answer=" ".join(words))


def at_tone(scene: Scene, rng: np.random.Generator, thing: str, options: tuple[str, ...]) -> Question:
    """Which `thing` (a colour, a shape) is on screen when a tone sounds?"""
    tone = scene.tones[int(rng.integers(len(scene.tones)))]
    answer = getattr(scene.shots[tone.shot], thing)
    return Question(
        family=f"{thing}_at_tone",
        text=f"Which {thing} is on screen when the {tone.name} tone sounds?",
        answer=answer,
        options=options,
        trajectory=(
            TextStep(text=f"The tone: {tone.name}"),
            look(scene, tone.shot),
            TextStep(text=f" {answer}. Answer: {answer}"),
        ),
    )


def after_tone(scene: Scene, rng: np.random.Generator, family: str, changes: int) -> Question | None:
    """Which colour comes one to four changes after a tone? None where every tone is too late for that."""
    tones = [tone for tone in scene.tones if tone.shot + changes < len(scene.shots)]
    if not tones:
        return None
    tone = tones[int(rng.integers(len(tones)))]
    shown = [scene.shots[k].colour for k in range(tone.shot, tone.shot + changes + 1)]
    steps: list[Step] = [TextStep(text=f"The tone: {tone.name}"), look(scene, tone.shot)]
    for hop, colour in enumerate(shown[:-1], start=1):
        steps += [TextStep(text=f" {colour}. Then:"), look(scene, tone.shot + hop)]
    steps.append(TextStep(text=f" {shown[-1]}. Answer: {shown[-1]}"))
    return Question(
        family=family,
        text=f"Which colour comes {_CHANGES[changes - 1]} after the {tone.name} tone?",
        answer=shown[-1],
        options=COLOURS,
        trajectory=tuple(steps),
    )
