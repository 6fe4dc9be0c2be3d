"""The film's questions: what can be asked about a scene, the answers, and the trajectories that lead to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omni_platform.media.film_hops import HOPS
from omni_platform.media.film_reasoning import REASONING, SYNCHRONY
from omni_platform.media.film_skills import BRIDGES, SKILLS, SYNC_SKILLS
from omni_platform.media.question import Question, after_tone, at_tone, look
from omni_platform.media.scene import COLOURS, FILM_VERSION, TONES, Scene, World, make_scene, make_sync_scene
from omni_platform.schema import Sample, TextStep

# --- Questions. Each maker returns None where the scene has no such question. ---


def colour_at_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour is on screen when a tone sounds? Six answers; either sense alone knows nothing."""
    return at_tone(scene, rng, "colour", COLOURS)


def tone_at_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which tone sounds while the shape has a colour? Four answers, balanced, `none` among them."""
    shots_of: dict[str, list[int]] = {}
    for k in scene.shots_of_unique_colour:
        shots_of.setdefault(scene.tone_in(k), []).append(k)
    answers = sorted({scene.tone_in(k) for k in range(len(scene.shots))})
    answer = answers[int(rng.integers(len(answers)))]
    # In long scenes a tone may sound over a colour that is shown twice: as many questions about silence are left out.
    share = len(scene.shots_of_unique_colour) / len(scene.shots)
    if answer not in shots_of or (share < 1 and answer == "none" and rng.random() >= share):
        return None
    shot = shots_of[answer][int(rng.integers(len(shots_of[answer])))]
    colour = scene.shots[shot].colour
    return Question(
        family="tone_at_colour",
        text=f"Which tone sounds while the shape is {colour}?",
        answer=answer,
        options=(*TONES, "none"),
        trajectory=(
            TextStep(text=f"The shape: {colour}"),
            look(scene, shot),
            TextStep(text=f" {answer}. Answer: {answer}"),
        ),
    )


def colour_after_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour comes one change after a tone? Six answers, but never the first shot's: blind ceiling 1/5."""
    return after_tone(scene, rng, "colour_after_tone", 1)


Maker = Callable[[Scene, np.random.Generator], Question | None]
CROSS_MODAL: dict[str, Maker] = {
    "colour_at_tone": colour_at_tone,
    "tone_at_colour": tone_at_colour,
    "colour_after_tone": colour_after_tone,
}
"""Families that neither sense can answer alone."""
FAMILIES: dict[str, Maker] = {**CROSS_MODAL, **REASONING, **SYNCHRONY, **SKILLS, **BRIDGES, **SYNC_SKILLS, **HOPS}
OF_SYNC_SCENES = frozenset((*SYNCHRONY, *SYNC_SKILLS))
"""Families that are about scenes of synchrony; all others are about scenes of shots."""

BLIND_CEILING = {"colour_at_tone": 1 / 6, "tone_at_colour": 1 / 4, "colour_after_tone": 1 / 5}
"""The best accuracy that one sense alone can reach (six shots, three tones)."""


def ask(scene: Scene, families: tuple[str, ...], *, draw: int = 0) -> list[Question]:
    """One question of each named family about a scene; a family may be named more than once.

    `draw` changes which of the possible questions are drawn, so that an epoch can ask anew.
    """
    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"unknown question families {sorted(unknown)}; known: {sorted(FAMILIES)}")
    rng = np.random.default_rng([FILM_VERSION, scene.seed, scene.index, 1 + draw])
    asked = (FAMILIES[family](scene, rng) for family in families)
    return [question for question in asked if question is not None]


def world_of(family: str) -> World:
    """Which kind of scenes a family is about."""
    return "synchrony" if family in OF_SYNC_SCENES else "shots"


def to_sample(question: Question, *, sample_id: str, clip_uri: str) -> Sample:
    """A question as a manifest row."""
    return Sample(
        sample_id=sample_id,
        clip_uri=clip_uri,
        question=question.text,
        answer=question.answer,
        options=question.options,
        question_type=question.family,
        trajectory=question.trajectory,
    )


def corpus() -> list[str]:
    """What the toy tokenizer is trained on: questions, answers and trajectories of 400 scenes.

    Another wording is another tokenizer, and the base checkpoint then has to be made again.
    """
    of_shots = tuple(family for family in FAMILIES if family not in OF_SYNC_SCENES and family not in HOPS)
    questions = [q for index in range(400) for q in ask(make_scene(seed=0, index=index), of_shots)]
    questions += [q for index in range(400) for q in ask(make_sync_scene(seed=0, index=index), tuple(OF_SYNC_SCENES))]
    lines: list[str] = []
    for question in questions:
        words = [step.text for step in question.trajectory if isinstance(step, TextStep)]
        lines += [question.text, question.answer, " ".join(question.options), *words]
    return lines
