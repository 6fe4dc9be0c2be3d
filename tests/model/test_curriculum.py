"""The course: lessons packed behind a clip, gates on held-out accuracy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from omni_model.batch import collate
from omni_model.curriculum import (
    BatchMaker,
    CourseConfig,
    Lesson,
    Packer,
    Stage,
    StageError,
    accuracy_by_family,
    packed_loss,
    run_course,
)
from omni_model.embedding import embed_batch
from omni_model.perception import Shown, Words
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


def _always_red(backbone, tokenizer):
    red = tokenizer(" red")["input_ids"][0]

    class Red(type(backbone)):
        def logits(self, hidden):
            logits = super().logits(hidden).clone()
            logits[..., red] += 1000
            return logits

    return Red(backbone.thinker)


def _showing(teach):
    """The same lessons, with what the first second shows: the lesson's number, even or odd."""

    def lesson(number: int, stage: Stage) -> Lesson:
        shown = Shown(start_s=0.0, end_s=1.0, visual=(number % 2,), audio=(0,))
        return replace(teach(number, stage), shown=(shown,))

    return lesson


def test_questions_stand_in_blocks_behind_one_clip(packer, tokenizer):
    packed = packer(0)
    plan = packed.plan
    assert packed.families == ("colour", "tone")
    assert plan.blocks.unique().tolist() == [0, 1, 2]
    assert plan.blocks[(plan.kinds == Kind.VISUAL) | (plan.kinds == Kind.AUDIO)].eq(0).all()
    learned = [plan.input_ids[(plan.blocks == b) & (plan.labels != IGNORE)] for b in (1, 2)]
    assert [tokenizer.decode(ids) for ids in learned] == [" red blue<|im_end|>", " low<|im_end|>"]


def test_every_second_answer_can_stand_after_the_word_that_begins_it(tokenizer, vocabulary, teach):
    """In post-training's own tokens; the word is given and not learned."""
    packer = Packer(tokenizer, vocabulary, teach, replace(STAGE, prefixed=True))
    for number in (0, 1):
        plan = packer(number).plan
        for block, answer in ((1, " red blue"), (2, " low")):
            place = plan.blocks == block
            told = tokenizer.decode(plan.input_ids[place]).split("assistant\n")[1]
            begins = "Answer:" if (number + block) % 2 == 0 else ""
            assert told == f"{begins}{answer}<|im_end|>"
            assert tokenizer.decode(plan.input_ids[place & (plan.labels != IGNORE)]) == f"{answer}<|im_end|>"
    word, rest, whole = (tokenizer(text)["input_ids"] for text in ("Answer:", " red blue", "Answer: red blue"))
    assert [*word, *rest] == whole


def test_the_given_word_counts_for_nothing(backbone, tokenizer, vocabulary, teach):
    """A model that always says red has the same accuracy with it and without."""
    lessons = [Packer(tokenizer, vocabulary, teach, replace(STAGE, prefixed=True))(n) for n in range(3)]
    assert accuracy_by_family(_always_red(backbone, tokenizer), lessons, 2) == {"colour": 0.5, "tone": 0.0}


def test_a_step_takes_what_its_lessons_show(tokenizer, vocabulary, teach):
    maker = BatchMaker(Packer(tokenizer, vocabulary, _showing(teach), STAGE), 2, 4)
    step = maker(1)
    assert [moments[0].visual for moments in step.shown] == [(0,), (1,)]  # lessons 6 and 7
    assert len(step.batch.labels_BL) == 2


@torch.no_grad()
def test_the_loss_is_that_of_separate_questions(backbone, tokenizer, vocabulary, packer, film):
    batch = collate([packer(n).plan for n in (0, 1)])
    loss, right, encoded = packed_loss(backbone, batch)
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
    assert torch.equal(encoded.visual_ND, embed_batch(backbone, batch).encoded.visual_ND)


def test_accuracy_counts_answer_words_and_not_the_end_of_turn(backbone, packer, tokenizer):
    """A model that always says red: half of "red blue" is right, and nothing of "low"."""
    lessons = [packer(n) for n in range(3)]
    assert accuracy_by_family(_always_red(backbone, tokenizer), lessons, 2) == {"colour": 0.5, "tone": 0.0}


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


def test_a_course_can_go_on_from_a_stage(new_backbone, tokenizer, vocabulary, teach):
    """With the lessons that the stage would have had; a stage that is not there is named."""
    second = replace(STAGE, name="second", max_clips=4)
    course = replace(COURSE, stages=(STAGE, second))
    reports = []
    options = {"teach": teach, "report": lambda *seen: reports.append(seen)}
    run_course(new_backbone(), tokenizer, vocabulary, course, **options, first_stage="second")
    assert [name for name, *_ in reports] == ["second"]
    assert [n for n in teach.numbers if n >= 0] == [8, 9, 10, 11]
    with pytest.raises(ValueError, match="the course has no stage 'third'; it has first, second"):
        run_course(new_backbone(), tokenizer, vocabulary, course, **options, first_stage="third")


def test_a_course_can_end_with_a_stage(new_backbone, tokenizer, vocabulary, teach):
    course = replace(COURSE, stages=(STAGE, replace(STAGE, name="second")))
    reports = []
    options = {"teach": teach, "report": lambda *seen: reports.append(seen)}
    run_course(new_backbone(), tokenizer, vocabulary, course, **options, last_stage="first")
    assert {name for name, *_ in reports} == {"first"}
    with pytest.raises(ValueError, match="the course has no stage 'third'; it has first, second"):
        run_course(new_backbone(), tokenizer, vocabulary, course, **options, last_stage="third")


def _first_loss(backbone, tokenizer, vocabulary, teach, course: CourseConfig) -> float:
    """Mean loss until the first evaluation, of lessons that tell what each moment holds."""
    losses: list[float] = []
    torch.manual_seed(0)
    run_course(
        backbone,
        tokenizer,
        vocabulary,
        course,
        teach=_showing(teach),
        report=lambda name, clips, figures: losses.append(figures["loss"]),
        words=Words(visual=(2,), audio=(2,)),
    )
    return losses[0]


def test_perception_adds_its_weighted_loss(new_backbone, tokenizer, vocabulary, teach):
    """To the loss of every step, beside the answers'."""

    def loss(weight: float) -> float:
        course = replace(COURSE, stages=(replace(STAGE, perception_weight=weight),))
        return _first_loss(new_backbone(), tokenizer, vocabulary, teach, course)

    plain, once, twice = (loss(weight) for weight in (0.0, 1.0, 2.0))
    assert plain < once < twice
    # In the first of the two averaged steps weights are equal, in the second a warmed-up step apart.
    assert (twice - once) == pytest.approx(once - plain, rel=0.2)


def test_perception_needs_words(new_backbone, tokenizer, vocabulary, teach):
    course = replace(COURSE, stages=(replace(STAGE, perception_weight=0.5),))
    with pytest.raises(ValueError, match="stage first has a perception_weight, and nobody told the words"):
        run_course(new_backbone(), tokenizer, vocabulary, course, teach=teach, report=lambda *_: None)


def test_a_course_can_multiply_in_bfloat16(new_backbone, tokenizer, vocabulary, teach):
    """The loss differs by rounding, and does differ; weights stay in float32."""

    def run(precision: str) -> tuple[float, set[torch.dtype]]:
        course = replace(COURSE, stages=(replace(STAGE, perception_weight=1.0),), precision=precision)
        backbone = new_backbone()
        loss = _first_loss(backbone, tokenizer, vocabulary, teach, course)
        return loss, {parameter.dtype for parameter in backbone.parameters()}

    (exact, _), (rounded, dtypes) = run("float32"), run("bfloat16")
    assert rounded == pytest.approx(exact, rel=5e-3)
    assert rounded != exact
    assert dtypes == {torch.float32}
