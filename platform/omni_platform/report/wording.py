"""The conditions of an evaluation in the order in which they are read, and what each of them is called."""

from __future__ import annotations

from collections.abc import Iterable

OWN = "own"
BLIND = ("no_audio", "no_video", "neither")
OTHER_CLIP = "latents_other"
_NAMES = {
    OWN: "own answer",
    "no_audio": "silence",
    "no_video": "black frames",
    "neither": "neither sense",
    "latents_zero": "latents: zeros",
    "latents_noise": "latents: noise of equal norm",
    OTHER_CLIP: "latents: another clip's",
    "latents_first": "latents: the first one held",
    "latents_gold": "latents: gold anchors",
    "span_removed": "latent span removed",
    "markers_only": "markers without latents",
    "half_budget": "half the latents",
    "double_budget": "twice the latents",
    "media_blocked": "media hidden after the span",
    "latents_blocked": "latents hidden after the span",
}


def in_order(conditions: Iterable[str]) -> list[str]:
    """The known conditions in reading order, then the others as they come."""
    given = list(conditions)
    return [name for name in _NAMES if name in given] + [name for name in given if name not in _NAMES]


def say(condition: str) -> str:
    """A condition in words."""
    return _NAMES.get(condition, plain(condition))


def plain(name: str) -> str:
    """A name from code as words: `colour_at_tone` -> `colour at tone`."""
    return name.replace("_", " ")
