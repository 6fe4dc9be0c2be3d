"""What can be reached on a family of questions without both senses: computed from the film's world, not from a model.

For a family and a sense, `_VIEWS` says what that sense knows that could help, and the answer in the sense's own terms
(ears know no colours, so a colour is to them one of six words; eyes know all colours, so to them it is a shot). The
best guess is then the most frequent answer for each thing known, counted over many scenes and scored on as many others.
Who knows the question's text alone guesses its most frequent answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from omni_platform.media.film import FAMILIES, ask, world_of
from omni_platform.media.question import Question
from omni_platform.media.scene import STEP_S, Scene, World, draw_scene

_View = Callable[[Scene, Question], tuple[Hashable, Hashable]]
"""What is known beside the question's text, and the answer in the same terms."""
_Seen = dict[tuple[str, str], list[tuple[Hashable, Hashable]]]
"""By family and who is asked, one entry a question: what is known with the text, and the answer."""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """The best accuracies on one family without what the family is about."""

    chance: float
    """Of a guess among the options."""
    text: float
    """Of the most frequent answer to the question's text."""
    ears: float
    eyes: float

    @property
    def blind(self) -> float:
        """Of the better sense alone."""
        return max(self.ears, self.eyes)


def ceilings(
    families: Iterable[str], *, num_scenes: int = 10_000, seed: int = 0, num_shots: int = 6
) -> dict[str, Ceilings]:
    """The ceilings of several families, counted over `num_scenes` scenes and scored on as many others.

    `num_shots` is that of scenes of shots. Raises `ValueError` for a family whose senses are not described.
    """
    families = tuple(families)
    strange = [family for family in families if family not in _VIEWS]
    if strange:
        raise ValueError(f"no ceiling is known for {', '.join(strange)}; described are {', '.join(_VIEWS)}")
    counted = _observe(families, range(num_scenes), seed, num_shots)
    # On scenes of their own: a best guess scored on what it was counted from would look too good.
    scored = _observe(families, range(num_scenes, 2 * num_scenes), seed, num_shots)
    found = {key: _score(counted[key], scored[key]) for key in scored}
    return {
        family: Ceilings(
            chance=chance(family, num_shots=num_shots),
            text=found[family, "text"],
            ears=found[family, "ears"],
            eyes=found[family, "eyes"],
        )
        for family in families
    }


def chance(family: str, *, num_shots: int = 6) -> float:
    """The accuracy of a guess among the options."""
    scenes = (draw_scene(world_of(family), seed=0, index=index, num_shots=num_shots) for index in range(100))
    asked = (ask(scene, (family,)) for scene in scenes)
    return 1 / len(next(questions[0] for questions in asked if questions).options)


def _observe(families: tuple[str, ...], indices: range, seed: int, num_shots: int) -> _Seen:
    seen: _Seen = defaultdict(list)
    worlds: set[World] = {world_of(family) for family in families}
    for world in worlds:
        of_world = tuple(family for family in families if world_of(family) == world)
        for index in indices:
            scene = draw_scene(world, seed=seed, index=index, num_shots=num_shots)
            for question in ask(scene, of_world):
                for who, view in (("text", _word), *_VIEWS[question.family].items()):
                    known, answer = view(scene, question)
                    seen[question.family, who].append(((question.text, known), answer))
    return seen


def _score(counted: list[tuple[Hashable, Hashable]], scored: list[tuple[Hashable, Hashable]]) -> float:
    answers: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for known, answer in counted:
        answers[known][answer] += 1
    best = {known: counter.most_common(1)[0][0] for known, counter in answers.items()}
    return sum(known in best and best[known] == answer for known, answer in scored) / len(scored)


# --- What a sense knows that could help, and the answer in its terms. ---


def _word(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    return None, question.answer


def _heard(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Ears: in which shots the tones of the question sound. Colours and shapes are words to them."""
    return tuple(tone.shot for tone in scene.tones if f"the {tone.name} tone" in question.text), question.answer


def _colours_seen(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Eyes: which of the colours shown it is, and how many shots show each."""
    return _by_frequency([shot.colour for shot in scene.shots], question.answer)


def _shapes_seen(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Eyes: the same for shapes."""
    return _by_frequency([shot.shape for shot in scene.shots], question.answer)


def _by_frequency(shown: list[str], answer: str) -> tuple[Hashable, Hashable]:
    """How often each thing is shown, the most frequent and the earliest first, and which of them is the answer."""
    # Sorted, long scenes differ in fewer ways, and fewer of them have to be counted for a best guess.
    things = sorted(dict.fromkeys(shown), key=shown.count, reverse=True)
    return tuple(shown.count(thing) for thing in things), things.index(answer)


def _shot_of_colour(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Eyes: in which shot the colour of the question is shown."""
    return next(k for k, shot in enumerate(scene.shots) if f"is {shot.colour}?" in question.text), question.answer


def _shape_changes(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Eyes: at which cuts the shape changes."""
    return tuple(a.shape != b.shape for a, b in pairwise(scene.shots)), question.answer


def _shape_pattern(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Eyes: which shots show the same shape as which."""
    shapes = [shot.shape for shot in scene.shots]
    return tuple(shapes.index(shape) for shape in shapes), question.answer


def _beep_step(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Ears: where in the clip the beep is. Near an end of it the flash has room on one side only."""
    return round(scene.tones[0].start_s / STEP_S), question.answer


def _flash_step(scene: Scene, question: Question) -> tuple[Hashable, Hashable]:
    """Eyes: where in the clip the flash is."""
    assert scene.flash is not None
    return round(scene.flash.start_s / STEP_S), question.answer


_VIEWS: dict[str, dict[str, _View]] = {
    "colour_at_tone": {"ears": _heard, "eyes": _colours_seen},
    "tone_at_colour": {"ears": _heard, "eyes": _shot_of_colour},
    "colour_after_tone": {"ears": _heard, "eyes": _colours_seen},
    "colour_n_after_tone": {"ears": _heard, "eyes": _colours_seen},
    "changes_between_tones": {"ears": _heard, "eyes": _shape_changes},
    "same_shape": {"ears": _heard, "eyes": _shape_pattern},
    "shape_at_tone": {"ears": _heard, "eyes": _shapes_seen},
    "flash_before_beep": {"ears": _beep_step, "eyes": _flash_step},
    "colour_far_after_tone": {"ears": _heard, "eyes": _colours_seen},
}
assert set(_VIEWS) <= set(FAMILIES)
