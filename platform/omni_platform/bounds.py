"""Which values a field takes, said in its type: `Annotated[int, Ge(1)]`, with the bounds of `annotated_types`.

`problem_of` compares a value with its type's bounds; `omni_platform.config` asks it about every field of every config,
and `check_fields` does the same for a config that Python code builds. A float must be finite whether bounded or not.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt


@dataclasses.dataclass(frozen=True)
class Must:
    """A rule of its own: `holds(value)`, and the words after "must"."""

    holds: Callable[[Any], bool]
    words: str


def _names_a_folder(name: str) -> bool:
    # Control characters and line ends would also break logs and listings.
    return name not in ("", ".", "..") and not set("/\\") & set(name) and name.isprintable() and name == name.strip()


Count = Annotated[int, Ge(1)]
"""At least one."""
Natural = Annotated[int, Ge(0)]
"""A number of things that may be none."""
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
FolderName = Annotated[
    str,
    Must(
        _names_a_folder,
        "be a folder name: not empty, not '.' or '..', without slashes, control characters and blanks at its ends",
    ),
]


def problem_of(value: Any, hint: Any) -> str | None:
    """What is wrong with a value that has the right type, as "must be ..."; None where it lies within its bounds."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return problem_of(value, args[0]) or _broken_rule(value, args[1:])
    if origin in (Union, types.UnionType):
        problems = [problem_of(value, member) for member in args if _is_a(value, member)]
        return None if None in problems or not problems else problems[0]
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, (tuple, list)) and origin in (tuple, list):
        hints = args if origin is tuple and args[-1] is not Ellipsis else (args[0],) * len(value)
        return next((p for item, of in zip(value, hints, strict=False) if (p := problem_of(item, of))), None)
    if isinstance(value, dict) and len(args) == 2:
        return next((f"{p} under {key!r}" for key, item in value.items() if (p := problem_of(item, args[1]))), None)
    return None


def check_fields(config: Any) -> None:
    """ValueError for the first field of a dataclass whose value is out of bounds: for `__post_init__`."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        if problem := problem_of(getattr(config, name), hint):
            raise ValueError(f"{name} {problem}, got {getattr(config, name)!r}")


def words_of(hint: Any) -> str:
    """The bounds of a type as `--help` shows them, such as "at least 1"; empty where it has none."""
    if get_origin(hint) is not Annotated:
        return ""
    return " and ".join(_words_of_rule(rule).removeprefix("be ") for rule in get_args(hint)[1:])


def _broken_rule(value: Any, rules: tuple[Any, ...]) -> str | None:
    for rule in rules:
        if not all(holds(value) for holds, _ in _parts(rule)):
            return f"must {_words_of_rule(rule)}"
    return None


def _words_of_rule(rule: Any) -> str:
    first, *rest = [words for _, words in _parts(rule)]
    return " and ".join([first, *(words.removeprefix("be ") for words in rest)])


def _parts(rule: Any) -> list[tuple[Callable[[Any], bool], str]]:
    """A rule as single comparisons, each with its words."""
    if isinstance(rule, Must):
        return [(rule.holds, rule.words)]
    if isinstance(rule, Interval):
        return [part for single in rule for part in _parts(single)]
    if isinstance(rule, Ge):
        return [(lambda value: value >= rule.ge, f"be at least {rule.ge}")]
    if isinstance(rule, Gt):
        return [(lambda value: value > rule.gt, f"be above {rule.gt}")]
    if isinstance(rule, Le):
        return [(lambda value: value <= rule.le, f"be at most {rule.le}")]
    if isinstance(rule, Lt):
        return [(lambda value: value < rule.lt, f"be below {rule.lt}")]
    raise TypeError(f"{rule!r} is no bound that configs know")


def _is_a(value: Any, hint: Any) -> bool:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kind = get_origin(hint) or hint
    if kind is float and isinstance(value, int):
        return not isinstance(value, bool)
    if not isinstance(kind, type):  # a Literal
        return value in get_args(hint)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
