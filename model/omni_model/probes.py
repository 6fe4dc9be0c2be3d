"""Does the latent matter? The same model answering with its senses or its latents taken away or exchanged.

Accuracy alone cannot tell. Every control here is paired with the model's own answer to the same question.
"""

# B = rows, P = phases, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch

from omni_model.generate import LatentOverride, Rollout
from omni_model.methods import without_slots
from omni_model.methods.base import Method
from omni_model.reason import Ask

Blind = Literal["no_audio", "no_video", "neither"]
BLIND: tuple[Blind, ...] = ("no_audio", "no_video", "neither")
LatentControl = Literal["zero", "noise", "other", "first", "gold"]
Name = Literal[
    "latents_zero",
    "latents_noise",
    "latents_other",
    "latents_first",
    "latents_gold",
    "span_removed",
    "markers_only",
    "half_budget",
    "double_budget",
    "media_blocked",
    "latents_blocked",
]
"""What may be done to a model that answers; `intervene` says what each is."""
INTERVENTIONS: tuple[Name, ...] = get_args(Name)
_CONTROLS: dict[str, LatentControl] = {f"latents_{which}": which for which in get_args(LatentControl)}


def blind(ask: Ask, which: Blind) -> Ask:
    """The question with black frames, silence, or both; the sequence keeps its length and places."""
    frames, waveform = ask.frames, ask.waveform
    if which in ("no_video", "neither"):
        frames = np.zeros_like(frames)
    if which in ("no_audio", "neither") and waveform is not None:
        waveform = np.zeros_like(waveform)
    return replace(ask, frames=frames, waveform=waveform)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of paired differences and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_difference(first: Sequence[float], second: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean of first minus second over the same questions, with a bootstrap interval over questions."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    if len(differences) == 0:
        raise ValueError("a paired difference needs at least one question")
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(len(differences), size=(draws, len(differences)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high))


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """What `generate` is called with instead of what the model is used to."""

    method: Method
    max_phases: int
    override: LatentOverride | None = None
    hide_latents: bool = False


def interventions_for(method: Method, *, gold: bool) -> tuple[Name, ...]:
    """Those that change anything for a method; `gold` says whether there are anchors with its slot counts.

    A method whose words do not see the clip anyway has no `media_blocked`, one with a slot a kind no `half_budget`.
    """
    slots = (method.num_visual, method.num_audio)
    has_slots = sum(slots) > 0
    changes: dict[Name, bool] = dict.fromkeys(INTERVENTIONS, has_slots)
    changes["latents_gold"] = has_slots and gold
    changes["half_budget"] = max(slots) > 1
    changes["span_removed"] = method.has_phases
    changes["media_blocked"] = method.has_phases and method.unroll.answering_bottleneck in ("none", "published")
    return tuple(name for name in INTERVENTIONS if changes[name])


def intervene(
    name: Name,
    method: Method,
    own: Sequence[Rollout],
    *,
    max_phases: int,
    donors: Sequence[int] | None = None,
    anchors: Sequence[torch.Tensor] | None = None,
    seed: int = 0,
) -> Intervention:
    """What is done under a name, to a trained model as it is, after its `own` rollouts of the same prompts.

    * `latents_zero`, `_noise`, `_other`, `_first`, `_gold`: the slots are fed something else (`control`).
    * `span_removed`: triggers are banned, so that the model answers without a phase.
    * `markers_only`: the trigger is followed by the stop at once.
    * `half_budget`, `double_budget`: half or twice the slots of each kind, at least one of a kind that was there.
    * `media_blocked`: what follows a phase does not see the clip (bottleneck `answer`; `strict` stays what it is).
    * `latents_blocked`: words do not see the latents.

    Raises `ValueError` for an unknown name, and for missing donors or anchors.
    """
    usual = Intervention(method=method, max_phases=max_phases)
    if name in _CONTROLS:
        return replace(usual, override=control(_CONTROLS[name], own, donors=donors, anchors=anchors, seed=seed))
    if name == "span_removed":
        return replace(usual, max_phases=0)
    if name == "markers_only":
        return replace(usual, method=without_slots(method))
    if name == "half_budget" or name == "double_budget":
        return replace(usual, method=_with_budget(method, 0.5 if name == "half_budget" else 2.0))
    if name == "media_blocked":
        return replace(usual, method=_with_media_blocked(method))
    if name == "latents_blocked":
        return replace(usual, hide_latents=True)
    raise ValueError(f"unknown intervention {name!r}; known: {', '.join(INTERVENTIONS)}")


def control(
    which: LatentControl,
    own: Sequence[Rollout],
    *,
    donors: Sequence[int] | None = None,
    anchors: Sequence[torch.Tensor] | None = None,
    seed: int = 0,
) -> LatentOverride:
    """What is fed instead of the model's own latents.

    `zero`: zeros. `noise`: Gaussian of the own latent's norm. `other`: the latents that row `donors[i]` made for its
    own clip, at the same phase (its last one where it has fewer). `first`: in every slot of a phase the first latent
    that the row made there by itself. `gold`: the anchors, float (P, K, D) a row.
    """
    if which == "zero":
        return lambda phase, slot, own_BD: torch.zeros_like(own_BD)
    if which == "noise":
        generator = torch.Generator().manual_seed(seed)
        return lambda phase, slot, own_BD: _noise_like(own_BD, generator)
    if which == "other":
        if donors is None:
            raise ValueError("control 'other' needs a donor row for every row")
        recorded = [_recorded(own[donor]) for donor in donors]
    elif which == "first":
        recorded = [[latents_KD[:1].expand_as(latents_KD) for latents_KD in _recorded(rollout)] for rollout in own]
    else:
        if anchors is None:
            raise ValueError("control 'gold' needs the anchors of every row")
        recorded = [list(a) for a in anchors]
    return lambda phase, slot, own_BD: torch.stack(
        [_take(phases, phase, slot, own_BD[i]) for i, phases in enumerate(recorded)]
    )


def choose_donors(clip_ids: Sequence[str], groups: Sequence[str], answers: Sequence[str] | None = None) -> list[int]:
    """For every row another row about another clip, of the same group (question type) where there is one.

    With `answers`, one with another answer where there is one: only then does following the donor show.
    """
    donors = []
    for i, (clip, group) in enumerate(zip(clip_ids, groups, strict=True)):
        after = [(i + step) % len(clip_ids) for step in range(1, len(clip_ids))]
        strangers = [j for j in after if clip_ids[j] != clip]
        if not strangers:
            raise ValueError("exchanging latents needs at least two clips in a batch; raise the batch size")
        alike = [j for j in strangers if groups[j] == group] or strangers
        differing = [j for j in alike if answers is not None and answers[j].lower() != answers[i].lower()]
        donors.append((differing or alike)[0])
    return donors


def _with_budget(method: Method, factor: float) -> Method:
    counts = {"num_visual": method.num_visual, "num_audio": method.num_audio}
    return _changed(method, {name: max(1, int(count * factor)) if count else 0 for name, count in counts.items()})


def _with_media_blocked(method: Method) -> Method:
    # Strict blocks all of that and the question's own view of the clip besides.
    if method.unroll.answering_bottleneck == "strict":
        return method
    known = {field.name for field in fields(method)}  # type: ignore[arg-type]
    # A method that lifts its bottleneck in the course of training would answer without one.
    changes = {"bottleneck": "answer", "bottleneck_until": 1.0}
    return _changed(method, {name: value for name, value in changes.items() if name in known})


def _changed(method: Method, changes: dict[str, Any]) -> Method:
    return replace(method, **changes)  # type: ignore[type-var]


def _recorded(rollout: Rollout) -> list[torch.Tensor]:
    phases = sorted({e.phase for e in rollout.events if e.type == "latent"})
    return [rollout.latents(phase) for phase in phases]


def _take(phases: Sequence[torch.Tensor], phase: int, slot: int, own_D: torch.Tensor) -> torch.Tensor:
    if not phases:
        return torch.zeros_like(own_D)
    return phases[min(phase, len(phases) - 1)][slot].to(own_D)


def _noise_like(own_BD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(own_BD.shape, generator=generator).to(own_BD)
    return noise / noise.norm(dim=-1, keepdim=True) * own_BD.norm(dim=-1, keepdim=True)
