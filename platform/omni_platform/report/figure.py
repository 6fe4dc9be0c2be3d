"""A figure with its 95 % interval and the number of answers behind it, as reports hold it and as people read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_POINTS = ("accuracy", "mean", "value", "share")
FIGURE_KEYS = (*_POINTS, "low", "high", "n", "chance")
MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What was measured; all but the number itself is None where the report does not tell."""

    point: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    chance: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


def read_figure(data: Any, *, n: int | None = None) -> Figure | None:
    """A number, or a mapping with `accuracy`, `mean`, `value` or `share` (and `low`, `high`, `n`, `chance`); else None.

    `n` is what holds where the data names none. Numbers that are not finite count as absent.
    """
    if not isinstance(data, Mapping):
        point = _number(data)
        return None if point is None else Figure(point=point, n=n)
    point = next((found for key in _POINTS if (found := _number(data.get(key))) is not None), None)
    if point is None:
        return None
    told = data.get("n")
    return Figure(
        point=point,
        low=_number(data.get("low")),
        high=_number(data.get("high")),
        n=told if isinstance(told, int) else n,
        chance=_number(data.get("chance")),
    )


def write_number(value: float) -> str:
    """Shares and costs with two decimals, small and large numbers with what can be told apart."""
    size = abs(value)
    if size >= 100 or (size >= 10 and value == int(value)):
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if 0 < size < 0.005:
        return f"{value:.4f}"
    # No "-0.00": a reader would look for the difference.
    return f"{round(value, 2) + 0.0:.2f}"


def write_interval(figure: Figure) -> str:
    """`[0.47, 0.57]`, or a dash."""
    if figure.low is None or figure.high is None:
        return MISSING
    return f"[{write_number(figure.low)}, {write_number(figure.high)}]"


def write_figure(figure: Figure | None) -> str:
    """`0.52 [0.47, 0.57]`; the number alone without an interval; a dash for nothing."""
    if figure is None:
        return MISSING
    return (
        f"{write_number(figure.point)} {write_interval(figure)}" if figure.has_interval else write_number(figure.point)
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
