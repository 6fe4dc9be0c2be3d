"""The picture of accuracies by condition is drawn whatever the accuracies are."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np

from omni_platform.pictures import draw_conditions


def _figures(value: float, low: float, high: float) -> dict:
    figure = {"n": 4, "accuracy": value, "low": low, "high": high}
    return {"all": figure, "by_type": {"a": figure}}


def test_all_right_and_all_wrong_are_drawn():
    """Wilson's interval of 18 right answers out of 18 ends at 0.9999999999999999."""
    report = {
        "chance": 0.2,
        "conditions": {"own": _figures(1.0, 0.8, 1.0 - 2e-16), "neither": _figures(0.0, 2e-17, 0.2)},
    }
    picture = matplotlib.image.imread(io.BytesIO(draw_conditions(report)), "png")[..., :3]
    inked = (picture.max(-1) - picture.min(-1) > 0.3).mean((0, 1))
    assert picture.ndim == 3 and inked > 0.05
    left, right = np.array_split(picture.max(-1) - picture.min(-1) > 0.3, 2, axis=1)
    assert left.sum() > 20 * right.sum()
