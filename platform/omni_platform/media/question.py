"""A question about a scene of the film, and the pieces that makers of questions share."""

from __future__ import annotations

from dataclasses import dataclass

from omni_platform.media.scene import Scene
from omni_platform.schema import LookStep, Step


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
