"""Do the latents matter? The answer of an evaluation in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omni_platform.report.figure import read_figure, write_figure
from omni_platform.report.wording import OTHER_CLIP

_SMALL_COST = 0.05
"""A cost in accuracy below which latents count as not used."""


def say_verdict(report: Mapping[str, Any], asked: Sequence[str]) -> str:
    """What it costs to exchange the latents for another clip's, and what follows.

    `asked` are the conditions that the evaluation was told to run: a control that was asked for and is not in the
    report is one that the method has no latents for.
    """
    figure = read_figure(report["costs"].get(OTHER_CLIP), n=report["n"])
    if figure is None:
        if OTHER_CLIP in asked:
            return "The method makes no latents, so there are none to exchange."
        return f"Whether the latents matter was not measured: add {OTHER_CLIP} to the conditions."
    if not report.get("latent_steps_mean"):
        return "The model never opened a latent phase, so there was nothing to exchange."
    if figure.low is None or figure.high is None:
        return (
            f"Exchanging the latents for another clip's costs {write_figure(figure)} of accuracy, interval not given."
        )
    behind = f"(own minus exchanged, paired, n\u00a0=\u00a0{figure.n})"
    if figure.low > 0:
        return f"Exchanging the latents for another clip's costs {write_figure(figure)} {behind}: they are used."
    if figure.high < 0:
        return (
            f"Exchanging the latents for another clip's costs {write_figure(figure)} {behind}: the model's own do harm."
        )
    # Too few questions show nothing either way: absence is said only where the interval is narrow.
    follows = "they are not used" if figure.high < _SMALL_COST else "no sign that they are used"
    return (
        "Exchanging the latents for another clip's costs nothing that can be told from zero, "
        f"{write_figure(figure)} {behind}: {follows}."
    )
