"""Plain values into a dataclass, for Python callers and `method.json`: unknown names and wrong values are refused.

Configs of jobs are read by `omni_platform.config`, by the same types and bounds; a model knows nothing of files.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import astuple, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

Options = TypeVar("Options")
_BOUNDS = {
    Ge: (operator.ge, "at least"),
    Gt: (operator.gt, "above"),
    Le: (operator.le, "at most"),
    Lt: (operator.lt, "below"),
}


def read_options(kind: type[Options], values: Mapping[str, Any], *, owner: str, noun: str) -> Options:
    """Build a dataclass from plain values.

    Raises `ValueError` that names the owner, the value and what would be right: a misspelt choice would otherwise
    fall through to some branch, and the text "false" would count as true.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{owner} has no {noun} {unknown}; it knows: {', '.join(known) or 'none'}")
    hints, bounds = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    read = {name: _checked(value, hints[name], f"{owner}: {name}") for name, value in values.items()}
    built = kind(**read)
    for name, value in read.items():
        _check_bounds(value, bounds[name], f"{owner}: {name}")
    return built


def _checked(value: Any, hint: Any, name: str) -> Any:
    if get_origin(hint) in (UnionType, Union) and NoneType in get_args(hint):
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


def _check_bounds(value: Any, hint: Any, name: str) -> None:
    """Against the bounds of `annotated_types` in a field's type; a number must be finite in any case."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    if get_origin(hint) in (UnionType, Union) and value is not None:
        (hint, *_) = (choice for choice in get_args(hint) if choice is not NoneType)
    if get_origin(hint) is not Annotated or value is None:
        return
    for rule in get_args(hint)[1:]:
        for single in rule if isinstance(rule, GroupedMetadata) else (rule,):
            holds, words = _BOUNDS[type(single)]
            (bound,) = astuple(cast(Any, single))
            if not holds(value, bound):
                raise ValueError(f"{name} must be {words} {bound}, got {value!r}")
