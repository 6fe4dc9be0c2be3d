"""The loss curves of a run as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")  # no display on a worker
from matplotlib.figure import Figure

_COLUMNS = 3


def draw_curves(histories: Mapping[str, Mapping[int, float]], *, title: str) -> bytes:
    """One panel per named term (value by step), three in a row, as a PNG file."""
    shown = {name: history for name, history in histories.items() if history}
    rows = max(1, math.ceil(len(shown) / _COLUMNS))
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.8 * rows), layout="constrained")
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axis in panels:
        axis.set_visible(False)
    for axis, (name, history) in zip(panels, shown.items(), strict=False):
        axis.set_visible(True)
        axis.plot(list(history.keys()), list(history.values()), linewidth=1.2)
        axis.set_title(name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
