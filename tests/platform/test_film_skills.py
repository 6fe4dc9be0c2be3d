"""Captions and single lookups of the film, and which colours long scenes may be asked about."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from omni_platform.media.film import ask
from omni_platform.media.scene import COLOURS, Scene, make_scene, make_sync_scene

SCENES = [make_scene(seed=6, index=index) for index in range(200)]
LONG = [make_scene(seed=6, index=index, num_shots=num_shots) for num_shots in (9, 14) for index in range(200)]
BY_COLOUR = (
    "tone_at_colour",
    "second_of_colour",
    "shape_of_colour",
    "next_colour",
    "colour_then_tone",
    "colour_then_second",
)
LISTS_BY_COLOUR = ("tone_by_colour", "shape_by_colour", "second_by_colour")


def named_colour(scene: Scene, text: str) -> str:
    (colour,) = {shot.colour for shot in scene.shots if shot.colour in text.rstrip("?.").split()}
    return colour


def shot_of(scene: Scene, colour: str) -> int:
    """The first shot that shows a colour."""
    return next(k for k, shot in enumerate(scene.shots) if shot.colour == colour)


def shown_once(scene: Scene) -> set[str]:
    counts = Counter(shot.colour for shot in scene.shots)
    return {colour for colour, count in counts.items() if count == 1}


def two_colours_only() -> Scene:
    """Every colour is shown more than once."""
    scene = make_scene(seed=6, index=0)
    shots = (replace(shot, colour=COLOURS[k % 2]) for k, shot in enumerate(scene.shots))
    return replace(scene, shots=tuple(shots))


def test_long_scenes_repeat_colours_but_never_next_to_each_other() -> None:
    for scene in LONG:
        colours = [shot.colour for shot in scene.shots]
        assert len(set(colours[:6])) == 6 and len(colours) in (9, 14)
        assert all(a != b for a, b in pairwise(colours))
        assert scene.shots_of_unique_colour == [k for k, c in enumerate(colours) if c in shown_once(scene)]
    assert all(scene.shots_of_unique_colour == [0, 1, 2, 3, 4, 5] for scene in SCENES)


@pytest.mark.parametrize("family", BY_COLOUR)
def test_long_scenes_are_not_asked_about_a_colour_that_is_shown_twice(family: str) -> None:
    asked = [(scene, question) for scene in LONG for question in ask(scene, (family,))]
    assert len(asked) > 60
    assert all(named_colour(scene, question.text) in shown_once(scene) for scene, question in asked)
    assert ask(two_colours_only(), (family,)) == []


@pytest.mark.parametrize("family", LISTS_BY_COLOUR)
def test_lists_by_colour_leave_out_colours_that_are_shown_twice(family: str) -> None:
    for scene in LONG[:100]:
        (question,) = ask(scene, (family,))
        named = [word for word in question.answer.split() if word in COLOURS]
        assert named == [colour for colour in COLOURS if colour in shown_once(scene)]


@pytest.mark.parametrize("num_shots", [6, 9])
def test_each_tone_and_silence_are_as_frequent_at_a_colour(num_shots: int) -> None:
    scenes = (make_scene(seed=7, index=index, num_shots=num_shots) for index in range(6000))
    answers = Counter(question.answer for scene in scenes for question in ask(scene, ("tone_at_colour",)))
    assert set(answers) == {"low", "mid", "high", "none"}
    assert all(count / answers.total() == pytest.approx(0.25, abs=0.03) for count in answers.values())


def test_the_next_colour_is_that_of_the_next_shot() -> None:
    seconds = set()
    for scene in SCENES + LONG:
        for question in ask(scene, ("next_colour",)):
            shot = shot_of(scene, named_colour(scene, question.text))
            assert question.text == f"Which colour follows {scene.shots[shot].colour}?"
            assert question.answer == scene.shots[shot + 1].colour and question.options == COLOURS
            seconds.add(shot)
    assert {0, 1, 2, 3, 4} <= seconds


def test_the_shape_of_a_colour_is_that_of_its_shot() -> None:
    for scene in SCENES + LONG:
        for question in ask(scene, ("shape_of_colour",)):
            shot = scene.shots[shot_of(scene, named_colour(scene, question.text))]
            assert (question.text, question.answer) == (f"Which shape is {shot.colour}?", shot.shape)


def test_steps_of_flash_and_beep_are_counted_in_80_ms() -> None:
    for index in range(200):
        scene = make_sync_scene(seed=6, index=index)
        flash, beep = ask(scene, ("flash_step", "beep_step"))
        assert scene.flash is not None
        assert int(flash.answer) * 0.08 == pytest.approx(scene.flash.start_s)
        assert int(beep.answer) * 0.08 == pytest.approx(scene.tones[0].start_s, abs=0.01)
        assert 1 <= abs(int(flash.answer) - int(beep.answer)) <= 4
    assert ask(SCENES[0], ("flash_step", "beep_step")) == []
