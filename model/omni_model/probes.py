"""Does the latent matter? The same model answering with its senses or its latents taken away or exchanged.

Accuracy alone cannot tell. Every control here is paired with the model's own answer to the same question.
"""

# B = rows, P = phases, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from omni_model.generate import LatentOverride, Rollout
from omni_model.reason import Ask

Blind = Literal["no_audio", "no_video", "neither"]
BLIND: tuple[Blind, ...] = ("no_audio", "no_video", "neither")
LatentControl = Literal["zero", "noise", "other", "gold"]
LATENT_CONTROLS: tuple[LatentControl, ...] = ("zero", "noise", "other", "gold")


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
    own clip, at the same phase (its last one where it has fewer). `gold`: the anchors, float (P, K, D) a row.
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
    else:
        if anchors is None:
            raise ValueError("control 'gold' needs the anchors of every row")
        recorded = [list(a) for a in anchors]
    return lambda phase, slot, own_BD: torch.stack(
        [_take(phases, phase, slot, own_BD[i]) for i, phases in enumerate(recorded)]
    )


def choose_donors(clip_ids: Sequence[str], groups: Sequence[str]) -> list[int]:
    """For every row another row about another clip, of the same group (question type) where there is one."""
    donors = []
    for i, (clip, group) in enumerate(zip(clip_ids, groups, strict=True)):
        after = [(i + step) % len(clip_ids) for step in range(1, len(clip_ids))]
        strangers = [j for j in after if clip_ids[j] != clip]
        if not strangers:
            raise ValueError("exchanging latents needs at least two clips in a batch; raise the batch size")
        alike = [j for j in strangers if groups[j] == group]
        donors.append((alike or strangers)[0])
    return donors


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
