"""How a question is put to the model and how its answer is written, the same in training, evaluation and serving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Literal

ANSWER = "Answer: "
"""What precedes a taught answer; `parse_answer` looks for it."""
MAX_LETTERED = len(ascii_uppercase)
_OWN_LETTER = re.compile(r"[(\[]?([A-Z])[)\]]?[.):]\s*(?=\S)")
"""The letter that an option of a benchmark brings along, such as "A. a horn"."""

PromptName = Literal["open", "lettered"]


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The words around a question. They are part of an exported model: asked in other words, it is another model."""

    system_prompt: str = ""
    """The system turn; empty for none."""
    options: Literal["hidden", "lettered"] = "hidden"
    """Whether the options of a multiple-choice question stand below it, one a line with its letter."""
    instruction: str = ""
    """The line below lettered options that says how to answer; a question without options has none."""
    answer: Literal["text", "letter", "letter_and_text"] = "text"
    """How a right answer that is one of the options is taught. An open question's answer is taught as it is."""

    def __post_init__(self) -> None:
        if self.options == "hidden" and (self.answer != "text" or self.instruction):
            raise ValueError(
                "a template that hides the options cannot ask for their letters: set options to lettered, or answer "
                "to text and instruction to nothing"
            )

    def question(self, question: str, options: Sequence[str] = ()) -> str:
        """The user's words: the question, and its options where the template shows them.

        Raises `ValueError` for options that `check_options` refuses.
        """
        check_options(options)
        if self.options == "hidden" or not options:
            return question
        lettered = zip(ascii_uppercase, option_words(options), strict=False)
        lines = [question, *(f"{letter}. {words}" for letter, words in lettered)]
        return "\n".join([*lines, self.instruction] if self.instruction else lines)

    def taught_answer(self, answer: str, options: Sequence[str] = ()) -> str:
        """The words of the right answer, such as "Answer: green" or "Answer: B".

        Raises `ValueError` for an answer that is none of the options where its letter is to be taught.
        """
        check_options(options)
        if self.answer == "text" or not options:
            return ANSWER + answer
        places = [i for i, option in enumerate(options) if option.lower() == answer.lower()]
        if not places:
            raise ValueError(f"the answer {answer!r} is none of the options {list(options)}")
        letter = ascii_uppercase[places[0]]
        return ANSWER + (letter if self.answer == "letter" else f"{letter}. {option_words(options)[places[0]]}")


PROMPTS: dict[PromptName, PromptTemplate] = {
    "open": PromptTemplate(),
    "lettered": PromptTemplate(
        options="lettered",
        instruction='End with "Answer: " and the letter of the right option.',
        answer="letter",
    ),
}
"""`open` gives the question alone and teaches the answer in words, for models that know the few possible answers.
`lettered` is for multiple-choice questions: it asks in one wording whether or not reasoning comes before the letter."""


def prompt_template(name: PromptName, *, system_prompt: str = "") -> PromptTemplate:
    """A template by name, with a system prompt. Raises `ValueError` for an unknown name."""
    if name not in PROMPTS:
        raise ValueError(f"unknown prompt {name!r}; known: {', '.join(PROMPTS)}")
    return replace(PROMPTS[name], system_prompt=system_prompt)


def check_options(options: Sequence[str]) -> None:
    """Raise `ValueError` for more options than letters, one without words, or two alike but for case and letters."""
    if len(options) > MAX_LETTERED:
        raise ValueError(
            f"a question has {len(options)} options, and letters are enough for {MAX_LETTERED}: give fewer options"
        )
    seen: dict[str, int] = {}
    for place, option in enumerate(option_words(options), start=1):
        words = option.lower()
        if not words:
            raise ValueError(f"option {place} of {len(options)} is empty: give every option its words")
        if words in seen:
            raise ValueError(f"options {seen[words]} and {place} are the same, {option[:80]!r}: give every option once")
        seen[words] = place


def option_words(options: Sequence[str]) -> list[str]:
    """Options on one line each, without letters of their own where all of them bring the right one ("A. a horn")."""
    lines = [" ".join(option.split()) for option in options]
    own = [_OWN_LETTER.match(line) for line in lines]
    if len(lines) > 1 and all(m and ord(m[1]) - ord("A") == i for i, m in enumerate(own)):
        return [line[m.end() :] for line, m in zip(lines, own, strict=True) if m]
    return lines
