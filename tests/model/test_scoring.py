"""Answers are read from what the model wrote, and what cannot be read is wrong."""

from __future__ import annotations

import pytest

from omni_model.scoring import accuracy, accuracy_by_type, chance, parse_answer

COLOURS = ("red", "green", "blue", "white")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # the project's own form
        ("The low tone: green. Answer: green", "green"),
        ("Answer: green.", "green"),
        ("answer:GREEN", "green"),
        ("Answer:\nblue", "blue"),
        ("Answer: red\nAnswer: blue", "blue"),
        ("answer is red. Answer: blue", "blue"),
        # letters
        ("B", "green"),
        ("(C)", "blue"),
        ("C.", "blue"),
        ("B) green", "green"),
        ("The answer is D", "white"),
        ("The answer is: (B)", "green"),
        ("**Answer:** B", "green"),
        ("Answer: **B**.", "green"),
        ("The answer is A because the tone is low", "red"),
        ("Answer: B, not red", "green"),
        ("Answer: not A but C", "blue"),
        # boxed comes first
        (r"\boxed{C} since Answer: red was wrong", "blue"),
        (r"First \boxed{A}, then \boxed{white}.", "white"),
        (r"\boxed{\text{B}}", "green"),
        (r"\boxed{purple} Answer: red", "red"),
        # words without a form: the last one mentioned
        ("It is not red, it is white", "white"),
        ("A green one", "green"),
        ("Answer: A green one", "green"),
        ("I cannot say. Perhaps C", "blue"),
        # unreadable
        ("", ""),
        ("I cannot say", ""),
        ("A tone sounds.", ""),
        ("Answer: purple", ""),
        ("reddish greenery", ""),
        ("Answer: H", ""),
        ("answers vary", ""),
    ],
)
def test_an_answer_is_one_of_the_options_or_nothing(text, answer):
    assert parse_answer(text, COLOURS) == answer


@pytest.mark.parametrize(
    ("text", "options", "answer"),
    [
        # an option within another one
        ("It is light blue", ("blue", "light blue"), "light blue"),
        ("It is blue", ("blue", "light blue"), "blue"),
        ("from light blue to blue", ("blue", "light blue"), "blue"),
        # options that begin or end in signs
        ("about 5 %.", ("5 %", "15 %"), "5 %"),
        ("about 15 %", ("5 %", "15 %"), "15 %"),
        ("It is C++ here", ("C", "C++"), "C++"),
        ("3.5", ("3", "3.5"), "3.5"),
        # an option that is itself a letter or a number
        ("Answer: 2", ("1", "2", "3"), "2"),
        ("12", ("1", "2", "12"), "12"),
        ("Answer: none", ("low", "none"), "none"),
        # letters beyond the options
        ("Answer: C", ("low", "high"), ""),
    ],
)
def test_odd_options(text, options, answer):
    assert parse_answer(text, options) == answer


SOUNDS = ("a drum", "a horn", "both", "neither")


@pytest.mark.parametrize("lettered", [True, False])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "a horn"),
        ("b", "a horn"),
        ("B.", "a horn"),
        ("(B)", "a horn"),
        ("(b)", "a horn"),
        ("[B]", "a horn"),
        ("B) a horn", "a horn"),
        ("B. a horn", "a horn"),
        ("B: a horn, not a drum", "a horn"),
        ("a horn", "a horn"),
        ("A horn", "a horn"),
        ("Answer: b", "a horn"),
        ("Answer: (b).", "a horn"),
        ("Answer: B. a horn", "a horn"),
        ("Answer: (B) a horn, louder than a drum", "a horn"),
        ("Answer: A horn", "a horn"),
        ("Answer: A loud horn, so a horn", "a horn"),
        ("The answer is A, a drum", "a drum"),
        ("Answer: A", "a drum"),
        ("Answer: A. a drum", "a drum"),
        ("Answer: a", "a drum"),
        ("Answer: A since it is low", "a drum"),
        # the article and the pronoun are no letters
        ("A loud sound is heard.", ""),
        ("Answer: A loud sound", ""),
        ("What is heard: A loud sound", ""),
        ("It is loud. A sound of brass", ""),
        ("I think I hear something", ""),
        ("It is D, I think", "neither"),
    ],
)
def test_letters_words_and_articles(text, answer, lettered):
    assert parse_answer(text, SOUNDS, lettered=lettered) == answer


def test_with_many_options_all_letters_count_and_the_pronoun_does_not():
    options = tuple(f"kind {i}" for i in range(26))
    assert parse_answer("Answer: I", options) == "kind 8"
    assert parse_answer("I think it is Z", options) == "kind 25"
    assert parse_answer("Perhaps I'm wrong, but K", options) == "kind 10"
    assert parse_answer("I cannot say", options) == ""


def test_a_letter_that_is_also_an_option_is_read_as_it_was_shown():
    options = ("B", "A", "C")
    assert parse_answer("Answer: A", options) == "A"
    assert parse_answer("Answer: A", options, lettered=True) == "B"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The tone: low. Answer: two tones.", "two tones"),
        ("two tones.", "two tones"),
        (r"so \boxed{42}", "42"),
        ("", ""),
    ],
)
def test_open_questions_keep_the_models_words(text, answer):
    assert parse_answer(text) == answer


def test_unreadable_answers_stay_in_the_count():
    texts = ["Answer: green", "I cannot say", "", "green"]
    scored = accuracy(parse_answer(text, COLOURS) == "green" for text in texts)
    assert (scored.n, scored.accuracy) == (4, 0.5)


def test_the_interval_is_wilsons():
    # 8 of 10: the textbook interval.
    scored = accuracy([True] * 8 + [False] * 2)
    assert (scored.low, scored.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (accuracy([True] * 5).high, accuracy([False] * 5).low) == (1.0, 0.0)
    assert accuracy([True] * 5).low == pytest.approx(0.5655, abs=1e-4)
    with pytest.raises(ValueError, match="no answers to score"):
        accuracy([])


def test_accuracy_by_type_and_chance():
    scored = accuracy_by_type(["b", "a", "b"], [True, False, False])
    assert list(scored) == ["a", "b"]
    assert (scored["b"].n, scored["b"].accuracy) == (2, 0.5)
    with pytest.raises(ValueError, match="zip"):
        accuracy_by_type(["a"], [True, False])
    assert chance([COLOURS, ("low", "high"), ()]) == pytest.approx((0.25 + 0.5 + 0) / 3)
