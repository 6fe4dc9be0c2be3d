"""What a sweep on the film encodes: every clip once, asked what its split is asked, under names that stay."""

from __future__ import annotations

from omni_platform.media.benchmark import BENCHMARK, SHIFTS
from omni_platform.media.film_reasoning import HELD_OUT
from omni_platform.media.film_sets import ClipRange, FilmSizes, Scenes, asked_clips, film_sets, split_sets
from omni_platform.media.scene import make_scene

SIZES = FilmSizes(train=7, train_synchrony=2, validation=3, test=5, test_synchrony=4, shifted=1, per_file=3)


def spans(ranges: list[ClipRange]) -> list[tuple[int, int]]:
    return [(clips.first, clips.stop) for clips in ranges]


def test_every_set_is_cut_into_ranges_without_a_gap():
    sets = film_sets(SIZES, None)
    plain = ["train", "validation", "test", "train_synchrony", "validation_synchrony", "test_synchrony"]
    assert list(sets) == [*plain, *SHIFTS]
    assert spans(sets["train"]) == [(0, 3), (3, 6), (6, 7)]
    assert spans(sets["test_synchrony"]) == [(0, 3), (3, 4)]
    assert [spans(sets[name]) for name in ("train_synchrony", "validation_synchrony", "noise")] == [
        [(0, 2)],
        [(0, 3)],
        [(0, 1)],
    ]
    for name, ranges in sets.items():
        for clips in ranges:
            assert clips.split == ("test" if name in SHIFTS else name.split("_")[0])
            assert clips.world == ("synchrony" if name.endswith("synchrony") else "shots")
            assert clips.shift == (name if name in SHIFTS else None)
            assert clips.draws == (3 if name.startswith("train") else 1)
    assert split_sets(sets, "test") == (sets["test"], sets["test_synchrony"])


def test_other_scenes_have_neither_synchrony_nor_shifted_tests():
    scenes = Scenes(num_shots=8, families=("colour_far_after_tone",))
    sets = film_sets(SIZES, scenes)
    assert list(sets) == ["train", "validation", "test"]
    assert {clips.scenes for ranges in sets.values() for clips in ranges} == {scenes}
    assert split_sets(sets, "train") == (sets["train"],)


def test_clips_of_a_test_are_asked_everything_and_have_their_shots():
    clips = list(asked_clips(ClipRange(split="test", first=4, stop=12), fps=2.0, side_px=32))
    assert [asked.clip_id for asked in clips] == [f"test-shots-plain-{index:06d}" for index in range(4, 12)]
    for index, asked in zip(range(4, 12), clips, strict=True):
        assert asked.clip.scene == make_scene(seed=3, index=index)
        assert asked.segments == tuple((k * 1.0, k + 1.0) for k in range(6))
        kinds = [sample.question_type for sample in asked.samples]
        assert len(kinds) == len(set(kinds)) and {*kinds} <= {*BENCHMARK, *HELD_OUT}
        assert all(s.clip_uri == asked.clip_id and s.sample_id.startswith(asked.clip_id) for s in asked.samples)
        assert len({sample.sample_id for sample in asked.samples}) == len(kinds)
    assert HELD_OUT[0] in {sample.question_type for asked in clips for sample in asked.samples}


def test_training_asks_again_and_never_what_is_held_out():
    several = ClipRange(split="train", first=0, stop=20, draws=3)
    found = list(asked_clips(several, fps=2.0, side_px=32))
    assert all(asked.segments == () for asked in found)
    for asked in found:
        texts = [sample.question for sample in asked.samples]
        assert len(texts) == len(set(texts))
        assert not {sample.question_type for sample in asked.samples} & set(HELD_OUT)
    assert max(len(asked.samples) for asked in found) > len(BENCHMARK)


def test_other_scenes_ask_their_families_alone_about_as_many_shots():
    scenes = Scenes(num_shots=8, families=("colour_far_after_tone",))
    found = list(asked_clips(ClipRange(split="test", first=0, stop=6, scenes=scenes), fps=2.0, side_px=32))
    assert {len(asked.clip.scene.shots) for asked in found} == {8}
    assert {len(asked.segments) for asked in found} == {8}
    assert {sample.question_type for asked in found for sample in asked.samples} == {"colour_far_after_tone"}
