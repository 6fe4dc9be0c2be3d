"""The reasoning families of the film: right answers, balanced ones, and what one sense alone can reach."""

from __future__ import annotations

from itertools import pairwise

import pytest

from omni_platform.media.ceilings import blind_ceiling, chance
from omni_platform.media.film import BLIND_CEILING, CROSS_MODAL, ask, corpus
from omni_platform.media.film_reasoning import HELD_OUT, REASONING
from omni_platform.media.question import Question
from omni_platform.media.scene import Scene, make_scene
from omni_platform.schema import LookStep

SCENES = [make_scene(seed=3, index=index) for index in range(300)]


def asked(family: str) -> list[tuple[Scene, Question]]:
    return [(scene, question) for scene in SCENES for question in ask(scene, (family,))]


def shots_looked_at(scene: Scene, question: Question) -> list[tuple[int, int]]:
    looks = [step for step in question.trajectory if isinstance(step, LookStep)]
    return [(round(s.start_s / scene.shot_s), round(s.end_s / scene.shot_s) - 1) for s in looks]


def named_shots(scene: Scene, text: str) -> list[int]:
    """Shots of the tones in the order in which a question names them."""
    named = sorted((text.index(f"the {t.name} tone"), t.shot) for t in scene.tones if f"the {t.name} tone" in text)
    return [shot for _, shot in named]


def test_colours_are_counted_on_from_the_tone() -> None:
    counts = set()
    for scene, question in asked("colour_n_after_tone"):
        (shot,) = named_shots(scene, question.text)
        count = 2 if "two changes" in question.text else 1
        counts.add(count)
        assert question.answer == scene.shots[shot + count].colour
        assert shots_looked_at(scene, question) == [(shot, shot), (shot + count, shot + count)]
    assert counts == {1, 2}


def test_changes_of_shape_are_counted_between_the_tones() -> None:
    answers = set()
    for scene, question in asked("changes_between_tones"):
        begin, end = sorted(named_shots(scene, question.text))
        shapes = [scene.shots[k].shape for k in range(begin, end + 1)]
        assert int(question.answer) == sum(a != b for a, b in pairwise(shapes))
        assert question.answer in question.options
        assert shots_looked_at(scene, question) == [(begin, end)]
        answers.add(question.answer)
    assert answers == {"0", "1", "2", "3", "4", "5"}


def test_shapes_are_compared_and_both_answers_are_as_frequent() -> None:
    found = asked("same_shape")
    for scene, question in found:
        first, second = named_shots(scene, question.text)
        assert (question.answer == "yes") == (scene.shots[first].shape == scene.shots[second].shape)
        assert shots_looked_at(scene, question) == [(first, first), (second, second)]
    many = [ask(make_scene(seed=4, index=index), ("same_shape",)) for index in range(4000)]
    answers = [question.answer for questions in many for question in questions]
    assert 0.47 < answers.count("yes") / len(answers) < 0.53


def test_the_held_out_family_asks_for_the_shape_at_a_tone() -> None:
    assert HELD_OUT == ("shape_at_tone",)
    for scene, question in asked("shape_at_tone"):
        (shot,) = named_shots(scene, question.text)
        assert question.answer == scene.shots[shot].shape


def test_the_base_s_tokenizer_does_not_change_with_these_families() -> None:
    assert not any("shape change" in line or "same as" in line for line in corpus())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # By hand: a colour is one of six words to the ears; to the eyes a shot, the first of which no tone precedes.
        ("colour_at_tone", 1 / 6),
        ("tone_at_colour", 1 / 4),
        ("colour_after_tone", 1 / 5),
        ("colour_n_after_tone", (1 / 5 + 1 / 4) / 2),
        ("same_shape", 1 / 2),
        ("shape_at_tone", 1 / 3),
    ],
)
def test_one_sense_alone_reaches_what_was_reckoned_by_hand(family: str, expected: float) -> None:
    assert blind_ceiling(family, num_scenes=6000) == pytest.approx(expected, abs=0.025)
    if family in BLIND_CEILING:
        assert BLIND_CEILING[family] == expected


def test_counting_leaks_more_to_one_sense_than_chance_says() -> None:
    """Ears hear how far apart the tones are: tones in neighbouring shots have at most one change between them."""
    assert blind_ceiling("changes_between_tones", num_scenes=6000) == pytest.approx(0.60, abs=0.03)
    assert chance("changes_between_tones") == 1 / 6


def test_families_without_a_description_are_refused() -> None:
    with pytest.raises(ValueError, match="no ceiling is known for tones_by_second"):
        blind_ceiling("tones_by_second")
    assert set(CROSS_MODAL) | set(REASONING) == {
        "colour_at_tone", "tone_at_colour", "colour_after_tone",
        "colour_n_after_tone", "changes_between_tones", "same_shape", "shape_at_tone",
    }  # fmt: skip
