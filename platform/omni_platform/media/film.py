"""The film's questions: what can be asked about a scene, the answers, and the trajectories that lead to them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omni_platform.media.film_reasoning import REASONING
from omni_platform.media.question import Question, after_tone, at_tone, caption, look
from omni_platform.media.scene import COLOURS, FILM_VERSION, TONES, Scene, make_scene
from omni_platform.schema import Sample, TextStep

# --- Questions. Each maker returns None where the scene has no such question. ---


def colour_at_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which colour is on screen when a tone sounds? Six answers; either sense alone knows nothing."""
    return at_tone(scene, rng, "colour", COLOURS)


def tone_at_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which tone sounds while the shape has a colour? Four answers, balanced, `none` among them."""
    answers = [tone.name for tone in scene.tones]
    if len(scene.shots) > len(scene.tones):
        answers.append("none")
    answer = answers[int(rng.integers(len(answers)))]
    shots = [k for k in range(len(scene.shots)) if scene.tone_in(k) == answer]
    shot = shots[int(rng.integers(len(shots)))]
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
    shown = sorted(range(len(scene.shots)), key=lambda k: COLOURS.index(scene.shots[k].colour))
    words = [w for k in shown for w in (scene.shots[k].colour, scene.tone_in(k))]
    return caption("tone_by_colour", "List the tone of each colour.", words)


def second_by_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    shown = sorted(range(len(scene.shots)), key=lambda k: COLOURS.index(scene.shots[k].colour))
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
    k = int(rng.integers(len(scene.shots)))
    return Question(
        family="second_of_colour",
        text=f"In which second is the shape {scene.shots[k].colour}?",
        answer=str(k + 1),
    )


def colour_then_tone(scene: Scene, rng: np.random.Generator) -> Question | None:
    """A single lookup that says its key first: a bridge from keyed lists to bare answers."""
    k = int(rng.integers(len(scene.shots)))
    colour = scene.shots[k].colour
    return caption("colour_then_tone", f"Name the tone of the {colour} shape.", [colour, scene.tone_in(k)])


def colour_then_second(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The same bridge for the second in which a colour is on screen."""
    k = int(rng.integers(len(scene.shots)))
    colour = scene.shots[k].colour
    return caption("colour_then_second", f"Name the second of the {colour} shape.", [colour, str(k + 1)])


Maker = Callable[[Scene, np.random.Generator], Question | None]
CROSS_MODAL: dict[str, Maker] = {
    "colour_at_tone": colour_at_tone,
    "tone_at_colour": tone_at_colour,
    "colour_after_tone": colour_after_tone,
}
"""Families that neither sense can answer alone."""
SKILLS: dict[str, Maker] = {
    "colours_and_tones": colours_and_tones,
    "colours_and_shapes": colours_and_shapes,
    "tones_by_second": tones_by_second,
    "colour_by_tone": colour_by_tone,
    "tone_by_colour": tone_by_colour,
    "second_by_colour": second_by_colour,
    "colour_at_second": colour_at_second,
    "second_of_tone": second_of_tone,
    "second_of_colour": second_of_colour,
}
"""Captions and single lookups: what a model must be able to do before the cross-modal questions are learnable."""
BRIDGES: dict[str, Maker] = {"colour_then_tone": colour_then_tone, "colour_then_second": colour_then_second}
"""Single lookups that repeat their key; used late in the curriculum only."""
FAMILIES: dict[str, Maker] = {**CROSS_MODAL, **REASONING, **SKILLS, **BRIDGES}

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
    """What the toy tokenizer is trained on: questions and answers of 400 scenes, and the phrases of trajectories.

    The phrases are written down apart from the trajectories, so that rewording a trajectory leaves the tokenizer, and
    with it the base checkpoint, as it is.
    """
    lines: list[str] = []
    for index in range(400):
        scene = make_scene(seed=0, index=index)
        for question in ask(scene, (*CROSS_MODAL, *SKILLS)):
            lines += [question.text, question.answer, " ".join(question.options), *_phrases(question)]
    return lines


def _phrases(question: Question) -> list[str]:
    """The words of a trajectory as the tokenizer's corpus has them."""
    texts = [step.text for step in question.trajectory if isinstance(step, TextStep)]
    if not texts:
        return []
    thing, key = texts[0].removeprefix("The ").split(": ")
    return [f"The {key} {thing}:", *texts[1:]]
