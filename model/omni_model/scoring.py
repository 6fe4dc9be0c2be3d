"""From what the model wrote to a score: one parser for every method, accuracies with intervals."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omni_model.prompt import MAX_LETTERED, option_words

_AT_LEAST = 8
"""Letters up to this one count as an answer, be it one that the question has not (which is then wrong)."""
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ANSWER = re.compile(r"answer(?:\s+is)?(?:\s*:\s*|\s+)([^\n]+)", re.IGNORECASE)
_ONE_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.):]?")
_LABELLED = re.compile(r"[(\[]?([A-Z])[)\].:]+\s+\S.*")
"""One line that begins with a letter as options do: "B. a horn"."""
_FIRST_LETTER = re.compile(r"[(\[]?([A-Z])(?![A-Za-z0-9'’+#-])")
_AS_LETTER = (
    r"(?!\s+(?:because|since|as|is|was|and|or|but|for|given|due|not|seems|the|this|that|it|which|from|to|in|by)\b)"
)
"""Words that follow a letter and no article."""
_ARTICLE = re.compile(rf"(^|[.!?:\n\"“]\s*)A(?=\s+[a-z]){_AS_LETTER}")
"""The word "A" that begins a sentence; it names no option."""
_PRONOUN = re.compile(rf"(?<![A-Za-z])I(?=\s+[a-z]|['’]){_AS_LETTER}")
"""The word "I", which names no option either."""


def parse_answer(text: str, options: Sequence[str] = (), *, lettered: bool = False) -> str:
    """The answer in the model's own output (never give it the prompt): boxed, then "Answer: …", then the last option.

    With options it returns one of them, recognised by its words or its letter (A is the first), or an empty string:
    an answer that cannot be read is wrong, and stays in the count. Where the options were shown with letters
    (`lettered`), "A" is the first one even if another consists of that letter.
    """
    for found in (_last(_BOXED, text), _last(_ANSWER, text)):
        if found is not None and (answer := _match(found, options, lettered)):
            return answer
    if not options:
        return text.strip().rstrip(".")
    line = text.strip()
    # "B. a horn, not a drum" gives B, though the drum is mentioned last.
    if (labelled := _LABELLED.fullmatch(line) or _ONE_LETTER.fullmatch(line)) and (answer := _at(labelled[1], options)):
        return answer
    return _last_mentioned(text, options)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.findall(text)
    return found[-1] if found else None


def _match(found: str, options: Sequence[str], lettered: bool) -> str:
    found = found.strip().strip("*").rstrip(".").strip()
    if not options:
        return found
    if lettered and (shown := _ONE_LETTER.fullmatch(found)):
        return _at(shown[1], options)
    for option, words in zip(options, option_words(options), strict=True):
        if found.lower() in (option.lower(), words.lower()):
            return option
    letter = _ONE_LETTER.fullmatch(found) or _FIRST_LETTER.match(found)
    if letter and not (_ARTICLE.match(found) or _PRONOUN.match(found)):
        return _at(letter[1], options)
    return _last_mentioned(found, options)


def _at(letter: str, options: Sequence[str]) -> str:
    place = ord(letter.upper()) - ord("A")
    return options[place] if place < len(options) else ""


def _last_mentioned(text: str, options: Sequence[str]) -> str:
    """The option that is mentioned last as whole words, the longest where several end there; else the last letter."""
    words = dict(zip(options, option_words(options), strict=True))
    places = {option: max(_last_end(option, text), _last_end(words[option], text)) for option in options}
    best = max(places, key=lambda option: (places[option], len(option)))
    if places[best] >= 0:
        return best
    last_letter = chr(ord("A") + min(max(len(options), _AT_LEAST), MAX_LETTERED) - 1)
    letters = re.findall(rf"(?<![A-Za-z])([A-{last_letter}])(?![A-Za-z])", _PRONOUN.sub("", _ARTICLE.sub(r"\1", text)))
    return _at(letters[-1], options) if letters else ""


def _last_end(option: str, text: str) -> int:
    """Where the option's last mention ends, -1 without one. Not a word boundary: an option may end in a sign."""
    mentions = re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE)
    return max((m.end() for m in mentions), default=-1)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of right answers with its 95 % Wilson interval."""

    n: int
    accuracy: float
    low: float
    high: float


def accuracy(right: Iterable[bool]) -> Accuracy:
    """Share of right answers. Raises `ValueError` for none at all."""
    values = list(right)
    if not values:
        raise ValueError("no answers to score; give evaluation at least one sample")
    n, p, z = len(values), sum(values) / len(values), 1.96
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Accuracy(n=n, accuracy=p, low=max(0.0, centre - half), high=min(1.0, centre + half))


def accuracy_by_type(types: Sequence[str], right: Sequence[bool]) -> dict[str, Accuracy]:
    """Accuracy of each question type."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for kind, is_right in zip(types, right, strict=True):
        groups[kind].append(is_right)
    return {kind: accuracy(values) for kind, values in sorted(groups.items())}


def chance(options: Sequence[Sequence[str]]) -> float:
    """Expected accuracy of guessing among each question's options; an open question counts as 0."""
    return sum(1 / len(o) if o else 0.0 for o in options) / len(options)
