"""The loss curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display on a worker
from matplotlib.figure import Figure


def draw_curves(histories: Mapping[str, Mapping[int, float]], path: Path, *, title: str) -> None:
    """One panel per named term (value by step), side by side, written as PNG."""
    shown = {name: history for name, history in histories.items() if history}
    figure = Figure(figsize=(4.2 * max(1, len(shown)), 3.2), layout="constrained")
    axes = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    for axis, (name, history) in zip(axes, shown.items(), strict=False):
        axis.plot(list(history.keys()), list(history.values()), linewidth=1.2)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
