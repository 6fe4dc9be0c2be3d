"""Where a model looked, drawn along its clip: frames, sound, annotated segments, and what its latents resemble."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from omni_platform.media.decode import SAMPLE_RATE_HZ
from omni_platform.report.answers import ShownAnswer
from omni_platform.report.strip import draw_strip, outline
from omni_platform.report.wording import plain

_WIDTH, _LEFT, _RIGHT = 880, 128, 16
_PLOT = _WIDTH - _LEFT - _RIGHT
_FRAME_HEIGHT, _SOUND_HEIGHT, _ROW = 64, 34, 19
_TRACK_COLOURS = {"visual": "first", "audio": "second"}
_ToX = Callable[[float], float]


def draw_timeline(answer: ShownAnswer) -> str:
    """One SVG for one answer, time from left to right in seconds.

    The moments are in the record: `moments`, a list of `{phase, modality, start_s, end_s, similarity}`; records of
    older evaluations have none.
    """
    row, duration_s = answer.row, _duration_s(answer)

    def x(time_s: float) -> float:
        return _LEFT + min(max(time_s / duration_s, 0.0), 1.0) * _PLOT

    strip, y = _strip(answer, duration_s)
    parts = [strip]
    if row.waveform is not None:
        parts.append(_sound(row.waveform, y, x(len(row.waveform) / SAMPLE_RATE_HZ)))
        y += _SOUND_HEIGHT + 4
    parts.append(_seconds(duration_s, y, x))
    y += 22
    top = y
    for label, track in _tracks(answer, x):
        parts.append(f'<text class="quiet" x="{_LEFT - 10}" y="{y + 11}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y + 7}" y2="{y + 7}"/>')
        parts.append(f'<g transform="translate(0 {y})">{track}</g>')
        y += _ROW
    # Behind everything: the annotated segments through all tracks, so that a hit shows as one.
    bands = "".join(
        f'<rect class="band" x="{x(look.start_s):.1f}" y="{top - 2}" width="{x(look.end_s) - x(look.start_s):.1f}" '
        f'height="{y - top}"/>'
        for look in row.sample.looks
    )
    label = escape(f"timeline of {row.sample.sample_id}")
    return f'<svg viewBox="0 0 {_WIDTH} {y + 2}" role="img" aria-label="{label}">{bands}{"".join(parts)}</svg>'


def _duration_s(answer: ShownAnswer) -> float:
    row = answer.row
    heard_s = 0.0 if row.waveform is None else len(row.waveform) / SAMPLE_RATE_HZ
    return max(len(row.frames) / row.sample_fps, heard_s)


def _strip(answer: ShownAnswer, duration_s: float) -> tuple[str, float]:
    """The frames, and where the next track may begin."""
    frames = answer.row.frames
    aspect = frames.shape[2] / frames.shape[1]
    num_cells = max(1, round(_PLOT / (_FRAME_HEIGHT * aspect)))
    height = min(_PLOT / num_cells / aspect, 2.0 * _FRAME_HEIGHT)
    jpeg = draw_strip(frames, sample_fps=answer.row.sample_fps, duration_s=duration_s, num_cells=num_cells)
    data = base64.b64encode(jpeg).decode()
    image = (
        f'<image x="{_LEFT}" y="0" width="{_PLOT}" height="{height:.1f}" preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{data}"/>'
    )
    return image, round(height) + 4


def _sound(waveform: np.ndarray, y: float, end: float) -> str:
    """The outline of the sound, mirrored at its middle."""
    heights = np.maximum(outline(waveform, 380) * _SOUND_HEIGHT / 2, 0.4)
    middle = y + _SOUND_HEIGHT / 2
    xs = np.linspace(_LEFT, end, len(heights))
    upper = [f"{x:.1f} {middle - h:.1f}" for x, h in zip(xs, heights, strict=True)]
    lower = [f"{x:.1f} {middle + h:.1f}" for x, h in zip(xs[::-1], heights[::-1], strict=True)]
    return f'<path class="sound" d="M{"L".join(upper + lower)}Z"/>'


def _seconds(duration_s: float, y: float, x: _ToX) -> str:
    ticks = [
        float(t) for t in MaxNLocator(10, steps=[1, 2, 5, 10]).tick_values(0, duration_s) if 0 <= t <= duration_s + 1e-6
    ]
    return "".join(
        f'<line class="axis" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{y}" y2="{y + 4}"/>'
        f'<text class="quiet" x="{x(t):.1f}" y="{y + 16}" text-anchor="middle">'
        f"{t:.4g}{' s' if t == ticks[-1] else ''}</text>"
        for t in ticks
    )


def _tracks(answer: ShownAnswer, x: _ToX) -> list[tuple[str, str]]:
    """Label and content of each track below the seconds; content begins at y = 0."""
    looks = answer.row.sample.looks
    tracks = []
    if looks:
        spans = [_span(x(look.start_s), x(look.end_s), "look", str(i)) for i, look in enumerate(looks, 1)]
        tracks.append(("annotated looks", "".join(spans)))
    moments = answer.record.get("moments")
    if moments is None:
        return tracks
    tracks += [_moment_track(moment, x) for moment in moments]
    if not moments:
        tracks.append(("latents", f'<text class="quiet" x="{_LEFT + 4}" y="11">the model did not look again</text>'))
    return tracks


def _moment_track(moment: Mapping[str, Any], x: _ToX) -> tuple[str, str]:
    """One phase and sense: the window its latents resemble most, with the likeness beside it."""
    colour = _TRACK_COLOURS.get(moment["modality"], "first")
    start, end = x(moment["start_s"]), x(moment["end_s"])
    bar = f'<rect class="{colour}" x="{start:.1f}" y="2" width="{max(end - start, 3.0):.1f}" height="10" rx="2"/>'
    # Beside the window on the side that has room.
    room = end + 40 < _WIDTH - _RIGHT
    place = f'x="{end + 5:.1f}"' if room else f'x="{start - 5:.1f}" text-anchor="end"'
    told = f'<text class="quiet" {place} y="11">{float(moment["similarity"]):.2f}</text>'
    return f"phase {int(moment['phase']) + 1}, {plain(moment['modality'])}", bar + told


def _span(start: float, end: float, css: str, label: str) -> str:
    return (
        f'<rect class="{css}" x="{start:.1f}" y="0" width="{max(end - start, 3.0):.1f}" height="14" rx="2"/>'
        f'<text class="small" x="{(start + end) / 2:.1f}" y="11" text-anchor="middle">{escape(label)}</text>'
    )
