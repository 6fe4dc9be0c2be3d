"""Questions of many hops: chains that are followed here once more, and nothing of them in what the base was taught."""

from __future__ import annotations

from collections import Counter

import pytest

from omni_platform.media.benchmark import BENCHMARK
from omni_platform.media.film import FAMILIES, ask, corpus
from omni_platform.media.film_hops import HOPS
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.question import Question
from omni_platform.media.scene import Scene, make_scene
from omni_platform.schema import LookStep, TextStep

SCENES = [make_scene(seed=3, index=index) for index in range(300)]


def asked(family: str) -> list[tuple[Scene, Question]]:
    return [(scene, question) for scene in SCENES for question in ask(scene, (family,))]


def shots_looked_at(question: Question) -> list[int]:
    looks = [step for step in question.trajectory if isinstance(step, LookStep)]
    assert all(look.end_s - look.start_s == 1.0 for look in looks)
    return [round(look.start_s) for look in looks]


def words(question: Question) -> list[str]:
    return [step.text for step in question.trajectory if isinstance(step, TextStep)]


def tone_named(scene: Scene, question: Question):
    (tone,) = [tone for tone in scene.tones if f"the {tone.name} tone" in question.text]
    return tone


def test_colours_are_counted_three_or_four_on_from_the_tone():
    counts = Counter()
    for scene, question in asked("colour_far_after_tone"):
        count = {"three changes": 3, "four changes": 4}[question.text.split("comes ")[1].split(" after")[0]]
        shot = tone_named(scene, question).shot
        assert shots_looked_at(question) == list(range(shot, shot + count + 1))
        assert question.answer == scene.shots[shot + count].colour
        counts[count] += 1
    assert counts[3] > counts[4] > 80  # four changes on from a tone there is less often anything


def test_a_chain_goes_to_the_same_shape_and_to_the_next_shot_in_turn():
    counts = Counter()
    for scene, question in asked("colour_along_shapes"):
        tone = tone_named(scene, question)
        hops = question.text.removeprefix(f"From the {tone.name} tone: ").removesuffix(". Which colour?").split(", ")
        assert hops == ["same shape", "next", "same shape", "next"][: len(hops)]
        chain = shots_looked_at(question)
        assert chain[0] == tone.shot and len(chain) == len(hops) + 1
        for hop, here, there in zip(hops, chain, chain[1:], strict=False):
            if hop == "next":
                assert there == here + 1
            else:
                assert there != here and scene.shots[there].shape == scene.shots[here].shape
        assert question.answer == scene.shots[chain[-1]].colour and question.answer in question.options
        seen = [f"{scene.shots[k].colour} {scene.shots[k].shape}" for k in chain]
        between = [f" {what}. {hop.capitalize()}:" for what, hop in zip(seen, hops, strict=False)]
        assert words(question) == [f"The tone: {tone.name}", *between, f" {seen[-1]}. Answer: {question.answer}"]
        counts[len(hops)] += 1
    assert set(counts) == {3, 4} and min(counts.values()) > 100


def test_a_shape_that_is_shown_thrice_has_no_other_one():
    assert not any(ask(make_scene(seed=3, index=i, num_shots=9), ("colour_along_shapes",)) for i in range(50))


@pytest.mark.parametrize("family", HOPS)
def test_many_hops_are_not_of_the_benchmark_and_not_of_the_corpus(family):
    assert family in FAMILIES and family not in (*BENCHMARK, *HELD_OUT)
    lines = set(corpus())
    assert not lines & {question.text for _, question in asked(family)}
