"""How questions are put and answers taught, token by token."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_model.folder import TINY_BASE, Preparation, load_folder, save_folder
from omni_model.methods import make_method
from omni_model.prompt import PROMPTS, PromptTemplate, check_options, option_words, prompt_template
from omni_model.scoring import parse_answer
from omni_model.sequence import IGNORE, Kind, PlanBuilder
from omni_platform.media.film import FAMILIES, OF_SYNC_SCENES, ask, to_sample
from omni_platform.media.scene import make_scene, make_sync_scene
from omni_platform.schema import LookStep, Sample, TextStep

LETTERED = prompt_template("lettered", system_prompt="You listen well.")
INSTRUCTION = 'End with "Answer: " and the letter of the right option.'


@pytest.fixture(scope="module")
def written(tokenizer, vocabulary, film):
    """`written(template, sample, method)`: the words around the clip, and those that are learned."""

    def lay_out(template: PromptTemplate, sample: Sample, method=None) -> tuple[str, str]:
        builder = PlanBuilder(tokenizer, vocabulary, film(), template=template)
        builder.chat_prompt(sample.question, sample.options)
        if method is not None:
            method.write(builder, sample)
        plan = builder.build()
        words = ~torch.isin(plan.kinds, torch.tensor([Kind.VISUAL, Kind.AUDIO, Kind.MARKER]))
        return tokenizer.decode(plan.input_ids[words]), tokenizer.decode(plan.labels[plan.labels != IGNORE])

    return lay_out


def _film_samples() -> list[Sample]:
    of_shots = tuple(family for family in FAMILIES if family not in OF_SYNC_SCENES)
    asked = [q for i in range(6) for q in ask(make_scene(seed=11, index=i, num_shots=7), of_shots)]
    asked += [q for i in range(6) for q in ask(make_sync_scene(seed=11, index=i), tuple(OF_SYNC_SCENES))]
    return [to_sample(question, sample_id=str(i), clip_uri="c.mp4") for i, question in enumerate(asked)]


def test_the_open_template_lays_questions_out_token_for_token_as_the_toy_base_learned_them(
    tokenizer, vocabulary, film, written
):
    def spelled(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    samples = _film_samples()
    assert sum(bool(sample.options) for sample in samples) > 50 and sum(not sample.options for sample in samples) > 5
    for template in (PROMPTS["open"], prompt_template("open", system_prompt="You listen well.")):
        for sample in samples:
            builder = PlanBuilder(tokenizer, vocabulary, film(), template=template)
            builder.chat_prompt(sample.question, sample.options)
            make_method("sft").write(builder, sample)
            plan = builder.build()
            first = int((plan.kinds == Kind.MARKER).nonzero()[0])
            last = int((plan.kinds == Kind.MARKER).nonzero()[-1])
            system = []
            if template.system_prompt:
                system = spelled("<|im_start|>system\n") + spelled("You listen well.<|im_end|>\n")
            assert plan.input_ids[:first].tolist() == system + spelled("<|im_start|>user\n")
            turn = spelled("<|im_end|>\n<|im_start|>assistant\n")
            answer = [*spelled(f"Answer: {sample.answer}"), vocabulary.chat_end]
            assert plan.input_ids[last + 1 :].tolist() == spelled(sample.question) + turn + answer
            assert plan.labels[-len(answer) :].tolist() == answer and plan.labels[: -len(answer)].eq(IGNORE).all()
    for method in ("text_cot", "latent_omni"):
        for sample in (s for s in samples if s.looks and len(s.looks) <= 3):
            _, learned = written(PROMPTS["open"], sample, make_method(method))
            words = "".join(step.text for step in sample.trajectory if isinstance(step, TextStep))
            assert learned.replace("<Unified_Latent>", "") == words + "<|im_end|>"


def test_lettered_options_stand_below_the_question_and_their_letter_is_taught(written, sample_with, latent):
    sample = sample_with(2)
    prompt = (
        "<|im_start|>system\nYou listen well.<|im_end|>\n<|im_start|>user\n"
        "Which colour is on screen when the low tone sounds?\nA. red\nB. green\nC. blue\n"
        f"{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert written(LETTERED, sample)[0] == prompt
    end = "Answer: B<|im_end|>"
    assert written(LETTERED, sample, make_method("sft")) == (prompt + end, end)
    learned = "The low tone: red. blue. Then: green. " + end
    assert written(LETTERED, sample, make_method("text_cot")) == (prompt + learned, learned)
    for method in (latent(), make_method("pause"), make_method("markers")):
        assert written(LETTERED, sample, method)[1].replace("<Unified_Latent>", "") == learned
    for words, said in (("answer", end), ("opening", f"The low tone: {end}"), ("evidence", f" red blue green {end}")):
        assert written(LETTERED, sample, make_method("text_cot", {"words": words}))[1] == said


def test_the_ids_of_a_lettered_question_are_those_of_its_words(tokenizer, vocabulary, film, sample_with):
    builder = PlanBuilder(tokenizer, vocabulary, film(), template=LETTERED)
    plan = builder.chat_prompt("Which?", ("red", "green")).build()
    words = f"Which?\nA. red\nB. green\n{INSTRUCTION}"
    expected = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert plan.input_ids[plan.kinds == Kind.QUESTION].tolist() == expected


def test_a_letter_with_its_words_can_be_taught(written, sample_with):
    template = replace(LETTERED, answer="letter_and_text")
    assert written(template, sample_with(1), make_method("sft"))[1] == "Answer: B. green<|im_end|>"


def test_a_question_without_options_is_open_in_every_template(written, sample_with):
    sample = replace(sample_with(1), options=(), answer="two tones", trajectory=(TextStep(text="So: two."),))
    for name in ("open", "lettered"):
        text, learned = written(prompt_template(name), sample, make_method("sft"))
        assert text.startswith(f"<|im_start|>user\n{sample.question}<|im_end|>\n")
        assert learned == "Answer: two tones<|im_end|>"
        assert written(prompt_template(name), sample, make_method("text_cot"))[1] == "So: two.<|im_end|>"


@pytest.mark.parametrize(
    ("last", "taught"),
    [
        (" green. Answer: green", " green. Answer: B"),
        (" green. Answer: GREEN.", " green. Answer: B"),
        (" The answer is: green", " The Answer: B"),
        (" so (B). Answer: B", " so (B). Answer: B"),
        (" Answer: (b) green\nDone.", " Answer: B\nDone."),
        (r" hence \boxed{B}", " hence Answer: B"),
        (" It is not red, it is green.", " It is not red, it is green. Answer: B"),
        (" It is green.\n", " It is green.\nAnswer: B"),
    ],
)
def test_the_last_words_of_a_trajectory_end_in_the_letter(written, sample_with, last, taught):
    steps = (TextStep(text="The low tone:"), LookStep(start_s=0, end_s=1), TextStep(text=last))
    sample = replace(sample_with(1), trajectory=steps)
    assert written(LETTERED, sample, make_method("text_cot"))[1] == f"The low tone:{taught}<|im_end|>"
    assert parse_answer(taught, sample.options) == "green"


def test_a_trajectory_that_ends_in_a_look_is_answered(written, sample_with):
    sample = replace(sample_with(1), trajectory=(TextStep(text="The low tone:"), LookStep(start_s=0, end_s=1)))
    assert written(LETTERED, sample, make_method("text_cot"))[1] == "The low tone: Answer: B<|im_end|>"


@pytest.mark.parametrize("last", [" Answer: blue", " Answer: C", r"\boxed{A}", " Answer: I cannot say"])
def test_a_trajectory_that_contradicts_the_answer_is_refused_by_name(written, sample_with, last):
    sample = replace(sample_with(1, sample_id="row-7"), trajectory=(TextStep(text=last),))
    with pytest.raises(ValueError, match=r"the trajectory of sample row-7 ends in .*, but its answer is 'green'"):
        written(LETTERED, sample, make_method("text_cot"))


def test_options_that_cannot_be_put_are_refused():
    for template in PROMPTS.values():
        with pytest.raises(ValueError, match="option 2 of 2 is empty"):
            template.question("Which?", ("red", " "))
        with pytest.raises(ValueError, match="options 1 and 3 are the same, 'Red': give"):
            template.question("Which?", ("red", "blue", " Red"))
    with pytest.raises(ValueError, match="options 1 and 2 are the same, 'a horn'"):
        check_options(("A. a horn", "B. a horn"))
    many = [f"number {i}" for i in range(27)]
    assert LETTERED.question("Which?", many[:26]).splitlines()[26] == "Z. number 25"
    for template in PROMPTS.values():
        with pytest.raises(ValueError, match="a question has 27 options, and letters are enough for 26"):
            template.question("Which?", many)
    with pytest.raises(ValueError, match="the answer 'pink' is none of the options"):
        LETTERED.taught_answer("pink", ("red", "blue"))
    check_options(("a", "b"))


def test_options_that_bring_their_letters_are_not_lettered_twice():
    brought = ("A. a horn", "B. a drum")
    assert option_words(brought) == ["a horn", "a drum"]
    assert LETTERED.question("Which?", brought).splitlines()[1:3] == ["A. a horn", "B. a drum"]
    assert LETTERED.taught_answer("B. a drum", brought) == "Answer: B"
    assert parse_answer("Answer: B", brought) == parse_answer("a drum", brought) == "B. a drum"
    # Not those of these places: they are words.
    assert option_words(("B. a horn", "A. a drum")) == ["B. a horn", "A. a drum"]
    assert option_words(("A.I.", "robots")) == ["A.I.", "robots"]


def test_an_option_is_one_line():
    assert LETTERED.question("Which?", ("red\nB. blue", "green")).splitlines()[1:3] == ["A. red B. blue", "B. green"]


def test_what_is_taught_is_what_is_read_back():
    rng = np.random.default_rng(0)
    words = ["horn", "a horn", "I am", "A B", "light blue", "blue", "12", "5 %", "C++", "none", "the drum, then a horn"]
    for _ in range(300):
        options = tuple(rng.permutation(words)[: rng.integers(2, 11)].tolist())
        for template in (LETTERED, replace(LETTERED, answer="letter_and_text")):
            for answer in options:
                assert parse_answer(template.taught_answer(answer, options), options, lettered=True) == answer, options


def test_a_template_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="hides the options"):
        PromptTemplate(answer="letter")
    with pytest.raises(ValueError, match="unknown prompt 'letters'; known: open, lettered"):
        prompt_template("letters")  # type: ignore[arg-type]


def test_an_exported_folder_from_before_templates_is_open(backbone, tokenizer, tmp_path):
    method = make_method("sft")
    save_folder(
        tmp_path,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=method.build_heads(64),
        preparation=Preparation(fps=1.0, prompt=LETTERED),
    )
    file = tmp_path / "method.json"
    state = json.loads(file.read_text())
    assert state["preparation"]["prompt"] == {
        "answer": "letter",
        "instruction": INSTRUCTION,
        "options": "lettered",
        "system_prompt": "You listen well.",
    }
    assert load_folder(tmp_path).preparation.prompt == LETTERED
    del state["preparation"]["prompt"]
    file.write_text(json.dumps(state | {"format": 1, "preparation": state["preparation"] | {"system_prompt": "Look."}}))
    assert load_folder(tmp_path).preparation == Preparation(
        fps=1.0, prompt=prompt_template("open", system_prompt="Look.")
    )
    state["preparation"]["prompt"] = {"options": "numbered"}
    file.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"the prompt of method.json: options must be one of 'hidden', 'lettered'"):
        load_folder(tmp_path)


def test_the_toy_base_is_asked_openly():
    assert load_folder(TINY_BASE).preparation.prompt == PROMPTS["open"]
