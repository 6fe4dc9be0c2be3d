"""The reasoning families of the film: right answers, balanced ones, and trajectories that name their evidence."""

from __future__ import annotations

from itertools import pairwise

import pytest

from omni_platform.media.film import ask
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.question import Question
from omni_platform.media.scene import Scene, make_scene, make_sync_scene
from omni_platform.schema import LookStep, TextStep

SCENES = [make_scene(seed=3, index=index) for index in range(300)]


def asked(family: str) -> list[tuple[Scene, Question]]:
    return [(scene, question) for scene in SCENES for question in ask(scene, (family,))]


def shots_looked_at(scene: Scene, question: Question) -> list[tuple[int, int]]:
    looks = [step for step in question.trajectory if isinstance(step, LookStep)]
    return [(round(s.start_s / scene.shot_s), round(s.end_s / scene.shot_s) - 1) for s in looks]


def words(question: Question) -> list[str]:
    """The words of a trajectory, one text for each side of a look."""
    return [step.text for step in question.trajectory if isinstance(step, TextStep)]


def named_shots(scene: Scene, text: str) -> list[int]:
    """Shots of the tones in the order in which a question names them."""
    named = sorted((text.index(f"the {t.name} tone"), t.shot) for t in scene.tones if f"the {t.name} tone" in text)
    return [shot for _, shot in named]


def test_colours_are_counted_on_from_the_tone_and_each_is_looked_at() -> None:
    counts = set()
    for scene, question in asked("colour_n_after_tone"):
        (shot,) = named_shots(scene, question.text)
        count = 2 if "two changes" in question.text else 1
        counts.add(count)
        shown = [scene.shots[k].colour for k in range(shot, shot + count + 1)]
        assert question.answer == shown[-1]
        assert shots_looked_at(scene, question) == [(k, k) for k in range(shot, shot + count + 1)]
        between = [f" {colour}. Then:" for colour in shown[:-1]]
        said = [f"The tone: {scene.tone_in(shot)}", *between, f" {question.answer}. Answer: {question.answer}"]
        assert words(question) == said
    assert counts == {1, 2}


def test_changes_of_shape_are_counted_between_the_tones() -> None:
    answers = set()
    for scene, question in asked("changes_between_tones"):
        named = named_shots(scene, question.text)
        begin, end = sorted(named)
        shapes = [scene.shots[k].shape for k in range(begin, end + 1)]
        assert int(question.answer) == sum(a != b for a, b in pairwise(shapes))
        assert question.options == ("0", "1", "2", "3", "4", "5") and question.answer in question.options
        assert shots_looked_at(scene, question) == [(begin, end)]
        first, second = (scene.tone_in(shot) for shot in named)
        evidence = f" {' '.join(shapes)}. Answer: {question.answer}"
        assert words(question) == [f"The tones: {first}, {second}", evidence]
        answers.add(question.answer)
    assert answers == {"0", "1", "2", "3", "4", "5"}


def test_shapes_are_compared_and_both_are_named() -> None:
    found = asked("same_shape")
    assert {question.answer for _, question in found} == {"yes", "no"}
    for scene, question in found:
        first, second = named_shots(scene, question.text)
        one, other = scene.shots[first].shape, scene.shots[second].shape
        assert question.answer == ("yes" if one == other else "no")
        assert shots_looked_at(scene, question) == [(first, first), (second, second)]
        tones = [scene.tone_in(first), scene.tone_in(second)]
        between = f" {one}. The tone: {tones[1]}"
        assert words(question) == [f"The tone: {tones[0]}", between, f" {other}. Answer: {question.answer}"]


@pytest.mark.parametrize("num_shots", [4, 6, 9])
def test_shapes_are_the_same_as_often_as_not(num_shots: int) -> None:
    scenes = (make_scene(seed=4, index=index, num_shots=num_shots) for index in range(4000))
    answers = [question.answer for scene in scenes for question in ask(scene, ("same_shape",))]
    assert len(answers) > 1000
    assert answers.count("yes") / len(answers) == pytest.approx(0.5, abs=0.03)


def test_the_held_out_family_asks_for_the_shape_at_a_tone() -> None:
    assert HELD_OUT == ("shape_at_tone",)
    for scene, question in asked("shape_at_tone"):
        (shot,) = named_shots(scene, question.text)
        assert question.answer == scene.shots[shot].shape
        assert question.options == ("circle", "square", "triangle", "cross")
        assert shots_looked_at(scene, question) == [(shot, shot)]
        said = [f"The tone: {scene.tone_in(shot)}", f" {question.answer}. Answer: {question.answer}"]
        assert words(question) == said


def test_the_flash_is_before_or_after_its_beep_and_the_look_holds_both() -> None:
    answers, gaps_ms = [], set()
    for index in range(300):
        scene = make_sync_scene(seed=3, index=index)
        (question,) = ask(scene, ("flash_before_beep",))
        flash, (beep,) = scene.flash, scene.tones
        assert flash is not None and question.text == "Is the flash before or after the beep?"
        assert question.answer == ("before" if flash.start_s < beep.start_s else "after")
        assert question.options == ("before", "after")
        answers.append(question.answer)
        gaps_ms.add(round(1000 * abs(flash.start_s - beep.start_s), -1))

        (look,) = (step for step in question.trajectory if isinstance(step, LookStep))
        # One step of 80 ms before the first of the two, and one after the end of the last.
        begin_s = min(flash.start_s, beep.start_s) - 0.08
        end_s = max(flash.end_s, beep.end_s) + 0.08
        assert (look.start_s, look.end_s) == pytest.approx((max(begin_s, 0.0), min(end_s, 2.0)), abs=0.001)
        steps = f" flash {round(flash.start_s / 0.08)} beep {round(beep.start_s / 0.08)}"
        assert words(question) == ["The flash and the beep:", f"{steps}. Answer: {question.answer}"]
    assert answers.count("before") == pytest.approx(150, abs=20)
    assert 80 in gaps_ms and 320 in gaps_ms and all(70 <= gap <= 330 for gap in gaps_ms)


def test_scenes_of_shots_have_no_flash_to_ask_about() -> None:
    assert ask(SCENES[0], ("flash_before_beep",)) == []
