"""Learning curves of several runs beside each other: read from the tracker, drawn as a panel for each metric."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.ticker import MaxNLocator
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from omni_platform.report.wording import plain
from omni_platform.tracking import TrackedRun, metric_history

_WIDTH, _HEIGHT, _LEFT, _FOOT = 284, 160, 40, 22
_MAX_POINTS = 300
_NUM_COLOURS = 6
_NOT_CURVES = ("epoch", "learning_rate", "grad_norm", "tokens_per_s", "data_wait_share", "padding_share")


@dataclass(frozen=True, kw_only=True)
class RunCurves:
    """The histories of one run."""

    label: str
    histories: Mapping[str, Mapping[int, float]]
    """Metric -> value by step; metrics with two steps or more."""


def read_curves(run_ids: Sequence[str], *, tracking_uri: str | None = None) -> list[RunCurves]:
    """Loss terms (`train/…`) and held-out figures (`val/…`, `eval/…`) of runs, each labelled by its run's name.

    Where `tracking_uri` is None: MLFLOW_TRACKING_URI. Raises `ValueError` for an unknown run or an unnamed store.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if run_ids and not uri:
        raise ValueError("learning curves need a tracking store: set MLFLOW_TRACKING_URI (or tracking_uri)")
    # The evaluated run may be among those it is compared with.
    return [_read_run(str(uri), run_id) for run_id in dict.fromkeys(run_ids)]


def draw_curves(runs: Sequence[RunCurves]) -> str:
    """A legend and one panel for each metric that any run has, the loss first; empty where there is none."""
    names = sorted({name for run in runs for name in run.histories}, key=_place)
    if not names:
        return ""
    shown = [(i, run) for i, run in enumerate(runs) if run.histories]
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 24 8">{_stroke(i, "M0 4H24")}</svg>{escape(run.label)}</li>'
        for i, run in shown
    )
    panels = "".join(
        _panel(name, [(i, run.histories[name]) for i, run in shown if name in run.histories]) for name in names
    )
    return f'<ul class="legend">{legend}</ul><div class="panels">{panels}</div>'


def _read_run(uri: str, run_id: str) -> RunCurves:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"run {run_id} is not in {uri}: give ids of runs that are (mlflow ui lists them)") from error
    run = TrackedRun(tracking_uri=uri, experiment_id=found.info.experiment_id, run_id=run_id)
    histories = {name: metric_history(run, name) for name in found.data.metrics if _is_curve(name)}
    method = found.data.params.get("task.method")
    name = found.info.run_name or run_id
    return RunCurves(
        label=f"{name} ({method})" if method else name,
        histories={name: history for name, history in histories.items() if len(history) > 1},
    )


def _is_curve(name: str) -> bool:
    group, _, term = name.partition("/")
    if group == "train":
        return "/" not in term and term not in _NOT_CURVES
    return group in ("val", "eval")


def _place(name: str) -> tuple[bool, bool, str]:
    return not name.startswith("train/"), name != "train/loss", name


def _panel(name: str, lines: Sequence[tuple[int, Mapping[int, float]]]) -> str:
    thinned = [(i, _thin(history)) for i, history in lines]
    points = [point for _, line in thinned for point in line]
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    x_ticks = [t for t in _ticks(steps, 4) if min(steps) <= t <= max(steps)]
    y_ticks = _ticks(values, 4)
    to_x = _scale(min(steps), max(steps), _LEFT, _WIDTH - 14)
    to_y = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _FOOT, 8)
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 14}" y1="{to_y(t):.1f}" y2="{to_y(t):.1f}"/>'
        f'<text class="quiet" x="{_LEFT - 5}" y="{to_y(t) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in y_ticks
    ]
    parts += [
        f'<text class="quiet" x="{to_x(t):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{t:.6g}</text>' for t in x_ticks
    ]
    for i, line in thinned:
        path = "L".join(f"{to_x(step):.1f} {to_y(value):.1f}" for step, value in line)
        parts.append(_stroke(i, f"M{path}") if line else "")
    title = escape(plain(name.removeprefix("train/").replace("/", ": ")))
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{title} by step">{"".join(parts)}</svg></figure>'
    )


def _thin(history: Mapping[int, float]) -> list[tuple[float, float]]:
    """Long histories as means over equal stretches; what is not finite is left out."""
    points = [(step, value) for step, value in sorted(history.items()) if math.isfinite(value)]
    size = -(-len(points) // _MAX_POINTS) or 1
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in stretches]


def _ticks(values: Sequence[float], count: int) -> list[float]:
    return [float(t) for t in MaxNLocator(count).tick_values(min(values), max(values))]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def _stroke(index: int, path: str) -> str:
    # After as many runs as there are colours they begin anew, dashed.
    dashed = " dashed" if index // _NUM_COLOURS % 2 else ""
    return f'<path class="run run{index % _NUM_COLOURS}{dashed}" d="{path}"/>'
