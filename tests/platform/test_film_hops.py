"""Questions of many hops: followed here once more, and nothing of them in what the base was taught."""

from __future__ import annotations

from collections import Counter

from omni_platform.media.benchmark import BENCHMARK
from omni_platform.media.film import FAMILIES, ask, corpus
from omni_platform.media.film_hops import HOPS
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.scene import make_scene
from omni_platform.schema import LookStep, TextStep

SCENES = [make_scene(seed=3, index=index) for index in range(300)]
ASKED = [(scene, question) for scene in SCENES for question in ask(scene, ("colour_far_after_tone",))]


def test_colours_are_counted_three_or_four_on_from_the_tone_and_each_is_looked_at():
    counts = Counter()
    for scene, question in ASKED:
        (tone,) = [tone for tone in scene.tones if f"the {tone.name} tone" in question.text]
        count = {"three changes": 3, "four changes": 4}[question.text.split("comes ")[1].split(" after")[0]]
        chain = list(range(tone.shot, tone.shot + count + 1))
        looks = [step for step in question.trajectory if isinstance(step, LookStep)]
        assert [(look.start_s, look.end_s) for look in looks] == [(k, k + 1.0) for k in chain]
        shown = [scene.shots[k].colour for k in chain]
        assert question.answer == shown[-1] and question.answer in question.options
        words = [step.text for step in question.trajectory if isinstance(step, TextStep)]
        between = [f" {colour}. Then:" for colour in shown[:-1]]
        assert words == [f"The tone: {tone.name}", *between, f" {question.answer}. Answer: {question.answer}"]
        counts[count] += 1
    assert counts[3] > counts[4] > 80  # four changes on from a tone there is less often anything


def test_many_hops_are_not_of_the_benchmark_and_not_of_the_corpus():
    assert set(HOPS) <= set(FAMILIES) and not set(HOPS) & {*BENCHMARK, *HELD_OUT}
    lines = set(corpus())
    assert not lines & {question.text for _, question in ASKED}
