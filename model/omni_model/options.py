"""Plain values of a file into a dataclass: unknown names and wrong values are refused, never guessed at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


def read_options(kind: type[Options], values: Mapping[str, Any], *, owner: str, noun: str) -> Options:
    """Build a dataclass from plain values.

    Raises `ValueError` that names the owner, the value and what would be right: a misspelt choice would otherwise
    fall through to some branch, and the text "false" would count as true.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{owner} has no {noun} {unknown}; it knows: {', '.join(known) or 'none'}")
    hints = get_type_hints(kind)
    return kind(**{name: _checked(value, hints[name], f"{owner}: {name}") for name, value in values.items()})


def _checked(value: Any, hint: Any, name: str) -> Any:
    if get_origin(hint) is UnionType and NoneType in get_args(hint):
        if value is None:
            return None
        (hint,) = (choice for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is Literal and value not in get_args(hint):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    # `type`, because a bool is an int to `isinstance`. YAML reads 1e-3 as text and 1.0e-3 as a number.
    if hint in (bool, int, float, str) and type(value) is not hint:
        raise ValueError(f"{name} must be a {hint.__name__}, got {value!r}")
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{name} must be a list, got {value!r}")
        return tuple(value)
    return value
