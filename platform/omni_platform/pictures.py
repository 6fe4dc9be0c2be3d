"""Pictures where one would rather look than read, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure


def draw_conditions(report: Mapping[str, Any]) -> bytes:
    """Accuracy under every condition with its interval, question types side by side, and the line of chance.

    `report` has `chance` and `conditions: {name: {all: {accuracy, low, high}, by_type: {type: …}}}`.
    """
    conditions = list(report["conditions"])
    kinds = ["all", *report["conditions"][conditions[0]]["by_type"]]
    figure = Figure(figsize=(1.5 + 1.3 * len(conditions), 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        values = [_figure_of(report["conditions"][c], kind) for c in conditions]
        heights = [v["accuracy"] for v in values]
        # An interval that ends at its own accuracy may end a rounding error on the wrong side of it.
        below = [max(v["accuracy"] - v["low"], 0.0) for v in values]
        above = [max(v["high"] - v["accuracy"], 0.0) for v in values]
        places = [c + (i - (len(kinds) - 1) / 2) * width for c in range(len(conditions))]
        axes.bar(places, heights, width * 0.92, yerr=[below, above], capsize=2, label=kind.replace("_", " "))
    axes.axhline(report["chance"], color="black", linestyle="--", linewidth=1, label="chance")
    axes.set_xticks(range(len(conditions)), [c.replace("_", "\n", 1) for c in conditions])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=len(kinds) + 1, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _figure_of(condition: Mapping[str, Any], kind: str) -> Mapping[str, float]:
    return condition["all"] if kind == "all" else condition["by_type"][kind]
