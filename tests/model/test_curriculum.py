"""The course: lessons packed behind a clip, gates on held-out accuracy."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import collate
from omni_model.curriculum import (
    CourseConfig,
    Lesson,
    Packer,
    Stage,
    StageError,
    accuracy_by_family,
    packed_loss,
    run_course,
)
from omni_model.sequence import IGNORE, Kind

STAGE = Stage(name="first", mix={"colour": 1, "tone": 1}, until={"colour": 0.0}, max_clips=8, num_shots=2)
COURSE = CourseConfig(stages=(STAGE,), clips_per_step=2, warmup_steps=2, eval_every_clips=4, eval_clips=3)


@pytest.fixture
def teach(film):
    """Which lesson was asked for is recorded in `teach.numbers`."""

    def lesson(number: int, stage: Stage) -> Lesson:
        lesson.numbers.append(number)
        questions = (("colour", "Which colour?", "red blue"), ("tone", "Which tone sounds?", "low"))
        return Lesson(media=film(abs(number) % 4, stage.num_shots), questions=questions)

    lesson.numbers = []
    return lesson


@pytest.fixture
def packer(tokenizer, vocabulary, teach) -> Packer:
    return Packer(tokenizer, vocabulary, teach, STAGE)


def test_questions_stand_in_blocks_behind_one_clip(packer, tokenizer):
    packed = packer(0)
    plan = packed.plan
    assert packed.families == ("colour", "tone")
    assert plan.blocks.unique().tolist() == [0, 1, 2]
    assert plan.blocks[(plan.kinds == Kind.VISUAL) | (plan.kinds == Kind.AUDIO)].eq(0).all()
    learned = [plan.input_ids[(plan.blocks == b) & (plan.labels != IGNORE)] for b in (1, 2)]
    assert [tokenizer.decode(ids) for ids in learned] == [" red blue<|im_end|>", " low<|im_end|>"]


@torch.no_grad()
def test_the_loss_is_that_of_separate_questions(backbone, tokenizer, vocabulary, packer, film):
    batch = collate([packer(n).plan for n in (0, 1)])
    loss, right = packed_loss(backbone, batch)
    separate = []
    for number in (0, 1):
        for _, question, answer in packer.teach(number, STAGE).questions:
            single = Lesson(media=film(number, 2), questions=(("f", question, answer),))
            plan = Packer(tokenizer, vocabulary, lambda *_, one=single: one, STAGE)(0).plan
            tokens = int((plan.labels != IGNORE).sum())
            separate.append((float(packed_loss(backbone, collate([plan]))[0]), tokens))
    expected = sum(value * tokens for value, tokens in separate) / sum(tokens for _, tokens in separate)
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    assert not right[batch.labels_BL == IGNORE].any()


def test_accuracy_counts_answer_words_and_not_the_end_of_turn(backbone, packer, tokenizer):
    """A model that always says red: half of "red blue" is right, and nothing of "low"."""
    red = tokenizer(" red")["input_ids"][0]

    class Red(type(backbone)):
        def logits(self, hidden):
            logits = super().logits(hidden).clone()
            logits[..., red] += 1000
            return logits

    lessons = [packer(n) for n in range(3)]
    assert accuracy_by_family(Red(backbone.thinker), lessons, 2) == {"colour": 0.5, "tone": 0.0}


def test_a_stage_ends_at_its_gate_and_reports_on_the_way(new_backbone, tokenizer, vocabulary, teach):
    reports = []
    figures = run_course(
        new_backbone(), tokenizer, vocabulary, COURSE, teach=teach, report=lambda *seen: reports.append(seen)
    )
    assert [(name, clips) for name, clips, _ in reports] == [("first", 4)]
    assert {"loss", "clips_per_s", "colour", "tone"} == set(reports[0][2])
    assert set(figures) == {"colour", "tone"}
    # Held-out lessons have negative numbers, and no lesson is taught twice.
    held_out = sorted(n for n in teach.numbers if n < 0)
    taught = [n for n in teach.numbers if n >= 0]
    assert held_out == [-3, -2, -1]
    assert len(set(taught)) == len(taught)


def test_the_next_stage_starts_where_the_last_ones_lessons_end(new_backbone, tokenizer, vocabulary, teach):
    second = Stage(name="second", mix={}, until={}, max_clips=4)
    course = CourseConfig(**{**vars(COURSE), "stages": (STAGE, second)})
    run_course(new_backbone(), tokenizer, vocabulary, course, teach=teach, report=lambda *_: None)
    taught = [n for n in teach.numbers if n >= 0]
    assert taught[:4] == [0, 1, 2, 3]
    assert taught[-4:] == [8, 9, 10, 11]


def test_a_gate_that_is_not_reached_ends_the_course(new_backbone, tokenizer, vocabulary, teach):
    strict = Stage(**{**vars(STAGE), "until": {"colour": 1.1}})
    course = CourseConfig(**{**vars(COURSE), "stages": (strict,)})
    reports = []
    with pytest.raises(StageError, match=r"stage first did not reach {'colour': 1\.1} within 8 clips"):
        run_course(
            new_backbone(), tokenizer, vocabulary, course, teach=teach, report=lambda *seen: reports.append(seen)
        )
    assert [clips for _, clips, _ in reports] == [4, 8]


def test_a_course_teaches(new_backbone, tokenizer, vocabulary, teach):
    """The same two answers over and over: the loss falls."""
    losses = []
    course = CourseConfig(
        **{**vars(COURSE), "stages": (Stage(**{**vars(STAGE), "until": {"colour": 1.1}, "max_clips": 40}),)}
    )
    with pytest.raises(StageError):
        run_course(
            new_backbone(),
            tokenizer,
            vocabulary,
            course,
            teach=teach,
            report=lambda name, clips, figures: losses.append(figures["loss"]),
        )
    assert losses[-1] < losses[0] / 2
