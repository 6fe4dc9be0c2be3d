"""Bounds in a field's type: what is refused, in which words, and that every number must be finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, MultipleOf

from omni_platform.bounds import (
    Count,
    FolderName,
    Natural,
    NotNegative,
    Positive,
    Share,
    ShareBelowOne,
    check_fields,
    problem_of,
)
from omni_platform.config import ConfigError, load_config, parse_args


@dataclass(frozen=True, kw_only=True)
class Part:
    weight: NotNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """A config with every kind of bound."""

    name: FolderName = "run"
    count: Count = 1
    none_or_more: Natural = 0
    rate: Positive = 1.0
    share: Share = 0.0
    beta: ShareBelowOne = 0.9
    free: float = 0.0
    workers: Count | tuple[Count, Count] = 1
    limit: Count | None = None
    flag: bool | Literal["auto"] = "auto"
    resources: dict[str, NotNegative] = field(default_factory=dict)
    rates: tuple[Positive, ...] = ()
    part: Part = field(default_factory=Part)

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("count=0", "'count' must be at least 1, got 0"),
        ("none_or_more=-1", "'none_or_more' must be at least 0, got -1"),
        ("rate=0", "'rate' must be above 0, got 0.0"),
        ("rate=nan", "'rate' must be a finite number, got nan"),
        ("rate=.inf", "'rate' must be a finite number, got inf"),
        ("free=-.inf", "'free' must be a finite number, got -inf"),
        ("free=1e999", "'free' must be a finite number, got inf"),
        ("share=1.5", "'share' must be at least 0 and at most 1, got 1.5"),
        ("beta=1.0", "'beta' must be at least 0 and below 1, got 1.0"),
        ("workers=0", "'workers' must be at least 1, got 0"),
        ("workers=[0, 2]", "'workers' must be at least 1, got (0, 2)"),
        ("limit=0", "'limit' must be at least 1, got 0"),
        ("resources={GPU: -1}", "'resources' must be at least 0 under 'GPU', got {'GPU': -1.0}"),
        ("rates=[1, 0]", "'rates' must be above 0, got (1.0, 0.0)"),
        ("part.weight=-1", "'part.weight' must be at least 0, got -1.0"),
        ("part.weight=nan", "'part.weight' must be a finite number, got nan"),
        *(
            (
                f"name='{name}'",
                "'name' must be a folder name: not empty, not '.' or '..', without slashes, control characters and "
                f"blanks at its ends, got {name!r}",
            )
            for name in ("", ".", "..", "a/b", "a\\b", " a", "a ")
        ),
        (
            'name="a\\nb"',
            "'name' must be a folder name: not empty, not '.' or '..', without slashes, control characters and "
            "blanks at its ends, got 'a\\nb'",
        ),
    ],
)
def test_a_value_out_of_bounds_is_named(word, message):
    with pytest.raises(ConfigError) as error:
        load_config(Bounded, None, [word])
    assert str(error.value) == f"the command line: {message}"


@pytest.mark.parametrize(
    "word",
    [
        "count=1", "none_or_more=0", "rate=1e-30", "share=0", "share=1", "beta=0", "workers=[1, 2]", "limit=null",
        "limit=3", "flag=true", "flag=auto", "resources={CPU: 0.5}", "name=a.b-c_1", "name=Prüfung 2", "rates=[]",
    ],
)  # fmt: skip
def test_a_value_within_its_bounds_is_taken(word):
    load_config(Bounded, None, [word])


def test_python_code_is_held_to_the_same_bounds():
    with pytest.raises(ValueError, match=r"^count must be at least 1, got 0$"):
        Bounded(count=0)
    with pytest.raises(ValueError, match=r"^free must be a finite number, got nan$"):
        Bounded(free=float("nan"))
    assert problem_of(True, int | Annotated[bool, Ge(0)]) is None


def test_a_bound_that_nobody_checks_is_a_mistake_of_the_programmer():
    with pytest.raises(TypeError, match="no bound that configs know"):
        problem_of(3, Annotated[int, MultipleOf(2)])


def test_help_shows_the_bounds(capsys):
    with pytest.raises(SystemExit):
        parse_args(Bounded, ["--help"])
    printed = capsys.readouterr().out
    assert "  count: int, at least 1 = 1\n" in printed
    assert "  beta: float, at least 0 and below 1 = 0.9\n" in printed
    assert "  limit: int, at least 1 | None = None\n" in printed
    assert problem_of(0.5, Annotated[float, Interval(gt=0.5)]) == "must be above 0.5"
    assert problem_of(0.5, Annotated[float, Gt(0.5)]) == "must be above 0.5"
