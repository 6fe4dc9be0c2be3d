"""Horizontal bars with intervals as an inline SVG, in the colours of the page around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.ticker import MaxNLocator

from omni_platform.report.figure import Figure, write_figure

_WIDTH, _LEFT, _RIGHT = 880, 216, 16
_ROW, _THICK, _FOOT = 26, 12, 40


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of the picture."""

    label: str
    figure: Figure
    colour: str = "first"
    """`first` or `second`: the page's colours."""
    marks: Mapping[str, float] = field(default_factory=dict)
    """Where upright marks stand in this row: `chance`, `ceiling`."""


def draw_bars(bars: Sequence[Bar], *, axis: str, limits: tuple[float, float]) -> str:
    """Bars from zero, in order from the top; `limits` are widened to hold every interval."""
    low, high = _limits(bars, limits)
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)
    height = _ROW * len(bars) + _FOOT

    def x(value: float) -> float:
        return _LEFT + (value - low) * scale

    ticks = [float(t) for t in MaxNLocator(6).tick_values(low, high) if low - 1e-9 <= t <= high + 1e-9]
    grid = [_grid_line(x(tick), tick, height) for tick in ticks]
    rows = [_row(bar, _ROW * i + _ROW / 2, x) for i, bar in enumerate(bars)]
    zero = f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height - _FOOT}"/>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    caption = f'<text class="quiet" x="{middle}" y="{height - 4}" text-anchor="middle">{escape(axis)}</text>'
    inside = "".join([*grid, *rows, zero, caption])
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(axis)}">{inside}</svg>'


def _limits(bars: Sequence[Bar], limits: tuple[float, float]) -> tuple[float, float]:
    figures = [bar.figure for bar in bars]
    lows = [f.point if f.low is None else f.low for f in figures]
    highs = [f.point if f.high is None else f.high for f in figures]
    return min([0.0, limits[0], *lows]), max([limits[1], *highs])


def _grid_line(x: float, value: float, height: int) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - _FOOT}"/>'
        f'<text class="quiet" x="{x:.1f}" y="{height - _FOOT + 15}" text-anchor="middle">{value:.4g}</text>'
    )


def _row(bar: Bar, y: float, x: Callable[[float], float]) -> str:
    start, end = sorted((x(0.0), x(bar.figure.point)))
    parts = [
        f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="bar {escape(bar.colour)}" x="{start:.1f}" y="{y - _THICK / 2:.1f}" '
        f'width="{end - start:.1f}" height="{_THICK}"/>',
    ]
    if bar.figure.low is not None and bar.figure.high is not None:
        parts.append(_whisker(x(bar.figure.low), x(bar.figure.high), y))
    for name, value in bar.marks.items():
        parts.append(
            f'<line class="{escape(name)}" x1="{x(value):.1f}" x2="{x(value):.1f}" '
            f'y1="{y - _ROW / 2 + 2:.1f}" y2="{y + _ROW / 2 - 2:.1f}"/>'
        )
    counted = "" if bar.figure.n is None else f", n = {bar.figure.n}"
    return f"<g><title>{escape(f'{bar.label}: {write_figure(bar.figure)}{counted}')}</title>{''.join(parts)}</g>"


def _whisker(low: float, high: float, y: float) -> str:
    return f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8"/>'
