"""The pictures beside the page, as PNG bytes: learning curves by method, and own latents against another clip's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from omni_platform.film_results.cells import OTHER, OWN, Variant
from omni_platform.film_results.intervals import Estimate, estimate
from omni_platform.media.benchmark import BENCHMARK

Curves = Mapping[str, Mapping[str, Sequence[Mapping[int, float]]]]
"""Metric -> variant -> one history a seed."""
CURVES = {
    "val/own": "mean of the families asked",
    **{f"val/{family}": family.replace("_", " ") for family in BENCHMARK},
}


def read_curves(variants: Sequence[Variant], *, tracking_uri: str) -> Curves:
    """Validation accuracies by step of every cell of the given variants."""
    client = MlflowClient(tracking_uri=tracking_uri)
    return {
        metric: {
            v.name: [
                {point.step: point.value for point in client.get_metric_history(result["run_id"], metric)}
                for result in v.results
            ]
            for v in variants
        }
        for metric in CURVES
    }


def draw_curves(curves: Curves) -> bytes:
    """A panel for each metric: the mean over seeds as a line, from the lowest seed to the highest as a band."""
    titles = shown_panels(curves)
    # One more panel holds the legend.
    columns = min(4, len(titles) + 1)
    rows = -(-(len(titles) + 1) // columns)
    figure = Figure(figsize=(0.5 + 3.2 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    names = list(next(iter(curves.values()), {}))
    for axes, (metric, title) in zip(panels, titles.items(), strict=False):
        for i, name in enumerate(names):
            found = [history for history in curves[metric][name] if history]
            steps = sorted(set.intersection(*map(set, found))) if found else []
            if not steps:
                continue
            values = np.array([[history[step] for step in steps] for history in found])
            axes.plot(steps, values.mean(0), color=f"C{i}", marker="o", markersize=3, linewidth=1.4)
            axes.fill_between(steps, values.min(0), values.max(0), color=f"C{i}", alpha=0.15, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(-0.02, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    last = figure.axes[-1]
    last.axis("off")
    for i, name in enumerate(names):
        last.plot([], [], color=f"C{i}", label=name.replace("_", " "))
    if names:
        last.legend(frameon=False, loc="center")
    figure.supxlabel("optimizer step", fontsize=10)
    figure.supylabel("accuracy on validation clips", fontsize=10)
    return _png(figure)


def shown_panels(curves: Curves) -> dict[str, str]:
    """Metric -> title of what there is to draw: a sweep may be about some families, and of one the mean is itself."""
    shown = {m: t for m, t in CURVES.items() if any(any(of_seeds) for of_seeds in curves.get(m, {}).values())}
    if len(shown) == 2:
        shown.pop("val/own", None)
    return shown


def draw_cure(variants: Sequence[Variant], *, best: Estimate | None) -> bytes:
    """Bars of every latent variant: own latents beside another clip's; `best` is the best variant without latents."""
    shown = [v for v in variants if v.latent and not v.budget and v.seeds]
    figure = Figure(figsize=(8, 1.2 + 0.36 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots()
    for offset, condition, label in ((-0.19, OWN, "own latents"), (0.19, OTHER, "another clip's latents")):
        found = [(i, estimate(rights)) for i, v in enumerate(shown) if (rights := v.rights(condition)) is not None]
        # An interval that ends at its own mean may end a rounding error on the wrong side of it.
        ends = [[max(e.mean - e.low, 0.0) for _, e in found], [max(e.high - e.mean, 0.0) for _, e in found]]
        places = [i + offset for i, _ in found]
        axes.barh(places, [e.mean for _, e in found], 0.36, xerr=ends, capsize=2, label=label)
    if best is not None:
        axes.axvline(best.mean, color="black", linestyle="--", linewidth=1, label="best without latents")
    axes.set_yticks(range(len(shown)), [f"{v.name} ({v.seeds})" for v in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("accuracy, mean of the families asked (95 % interval); number of seeds in parentheses")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _png(figure)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
