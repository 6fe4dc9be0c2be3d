"""What one sense alone can reach on a family of questions: computed from the world of the film, not from a model.

For a family and a sense, `_VIEWS` says what that sense knows that could help, and the answer in the sense's own terms
(ears know no colours, so a colour is to them one of six words; eyes know all colours, so to them it is a shot). The
best guess is then the most frequent answer for each thing known, counted over many scenes and scored on as many others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from typing import Literal

from omni_platform.media.film import FAMILIES, ask
from omni_platform.media.question import Question
from omni_platform.media.scene import Scene, make_scene

Sense = Literal["ears", "eyes"]
_View = Callable[[Scene, Question], tuple[Hashable, Hashable]]


def blind_ceiling(family: str, *, num_scenes: int = 20_000, seed: int = 0) -> float:
    """The best accuracy that ears or eyes alone can reach on a family, counted over scenes of the film.

    Raises `ValueError` for a family whose senses are not described.
    """
    if family not in _VIEWS:
        raise ValueError(f"no ceiling is known for {family}; described are {', '.join(_VIEWS)}")
    return max(_ceiling(family, view, num_scenes, seed) for view in _VIEWS[family].values())


def chance(family: str) -> float:
    """The accuracy of a guess among the options."""
    asked = (ask(make_scene(seed=0, index=index), (family,)) for index in range(100))
    return 1 / len(next(questions[0] for questions in asked if questions).options)


def _ceiling(family: str, view: _View, num_scenes: int, seed: int) -> float:
    counted = _views(family, view, range(num_scenes), seed)
    seen: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for known, answer in counted:
        seen[known][answer] += 1
    # On scenes of their own: a best guess scored on what it was counted from would look too good.
    scored = _views(family, view, range(num_scenes, 2 * num_scenes), seed)
    return sum(known in seen and seen[known].most_common(1)[0][0] == answer for known, answer in scored) / len(scored)


def _views(family: str, view: _View, indices: range, seed: int) -> list[tuple[Hashable, Hashable]]:
    found = []
    for index in indices:
        scene = make_scene(seed=seed, index=index)
        for question in ask(scene, (family,)):
            known, answer = view(scene, question)
            found.append(((question.text, known), answer))
    return found


def _shot_of_colour(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    return None, scene.shot_of(question.answer)


def _word(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    return None, question.answer


def _distance(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """How many shots apart the tones named in the question are."""
    shots = [tone.shot for tone in scene.tones if f"the {tone.name} tone" in question.text]
    return max(shots) - min(shots), question.answer


def _pattern(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Which shots show the same shape as which."""
    shapes = [shot.shape for shot in scene.shots]
    return tuple(shapes.index(shape) for shape in shapes), question.answer


def _shape_of_pattern(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    shapes = [shot.shape for shot in scene.shots]
    return tuple(shapes.index(shape) for shape in shapes), shapes.index(question.answer)


def _tone_at_shown(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    shown = next(k for k, shot in enumerate(scene.shots) if f"is {shot.colour}?" in question.text)
    return shown, question.answer


_VIEWS: dict[str, dict[Sense, _View]] = {
    "colour_at_tone": {"ears": _word, "eyes": _shot_of_colour},
    "tone_at_colour": {"ears": _word, "eyes": _tone_at_shown},
    "colour_after_tone": {"ears": _word, "eyes": _shot_of_colour},
    "colour_n_after_tone": {"ears": _word, "eyes": _shot_of_colour},
    "changes_between_tones": {"ears": _distance, "eyes": _pattern},
    "same_shape": {"ears": _word, "eyes": _pattern},
    "shape_at_tone": {"ears": _word, "eyes": _shape_of_pattern},
}
assert set(_VIEWS) <= set(FAMILIES)
