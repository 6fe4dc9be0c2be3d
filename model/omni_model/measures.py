"""What a batch of rollouts shows beside its answers: where it looks, what kind of vectors latents are, what they hold.

One replay serves all measures. Figures are plain numbers, so that they travel with the records of an examination.
"""

# B = rows, L = positions, M = moments, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from omni_model.attention import gazes, summarise_gaze, watch
from omni_model.backbone import Backbone
from omni_model.decodability import decodability, read_states
from omni_model.events import Rollout
from omni_model.geometry import effective_rank, mean_cosine, norm_ratio, retrieval_top1
from omni_model.methods.base import Method
from omni_model.moments import Moments
from omni_model.probes import paired_difference
from omni_model.replay import Track, lay_track, run_track
from omni_model.sequence import Kind, Plan

_KINDS = {"visual": Kind.LATENT_VISUAL, "audio": Kind.LATENT_AUDIO}


@torch.no_grad()
def measure(
    backbone: Backbone,
    method: Method,
    plans: Sequence[Plan],
    rollouts: Sequence[Rollout],
    *,
    moments: Moments | None = None,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Figures of every row, for rollouts under the method's own conditions; a row leaves out what it does not have.

    * `attention`: see `summarise_gaze`.
    * `latents`: `norm_ratio` of the row, and of all latents of the batch, a kind at a time, `effective_rank_*` and
      `mean_cosine_*`, which grow and shrink with the number of rows: compare them at equal batch sizes.
    * `retrieval`: with `moments`, the share of phases that point at the look of the same number (`retrieval_top1`,
      latents with their mean over the batch taken away), among the moments of the clip and of the batch, and what
      guessing gives.
    * `states`: what the linear probe reads (`read_states`), as lists.
    """
    track = lay_track(backbone, method, plans, rollouts, device=device)
    with watch(backbone, track) as shares:
        replayed = run_track(backbone, method, track)
    looked, states, of_batch = gazes(track, shares), read_states(replayed), _of_batch(track)
    common_KD = _mean_latents(rollouts)
    figures = []
    for row, rollout in enumerate(rollouts):
        out: dict[str, Any] = {"attention": summarise_gaze(looked[row])}
        if bool(track.is_latent[row].any()):
            latents_ND, media_ND = (track.inputs_BLD[row, at[row]] for at in (track.is_latent, track.is_media))
            out["latents"] = {"norm_ratio": norm_ratio(latents_ND, media_ND), **of_batch}
            if moments is not None and (found := _retrieval(moments, row, rollout, method, common_KD)):
                out["retrieval"] = found
        out["states"] = {site: [round(x, 4) for x in state.tolist()] for site, state in states[row].items()}
        figures.append(out)
    return figures


def summarise_measures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over rows of every figure, and how well a linear probe reads the answer, by question type and site.

    `records` are those of one condition, with `measures`, `question_type`, `expected` and `clip_id`. Retrieval has
    bootstrap intervals and its chance, over all rows and, as `retrieval_by_type`, over those of each question type. A
    figure that no row has is left out.
    """
    measured = [r for r in records if r.get("measures")]
    out: dict[str, Any] = {}
    for group in ("attention", "latents"):
        if columns := _columns(measured, group):
            out[group] = {name: _mean(values) for name, values in columns.items()}
    of_type = {
        kind: [r for r in measured if r["question_type"] == kind]
        for kind in dict.fromkeys(r["question_type"] for r in measured)
    }
    pointing = {kind: _shares(columns) for kind, rows in of_type.items() if (columns := _columns(rows, "retrieval"))}
    if pointing:
        out |= {"retrieval": _shares(_columns(measured, "retrieval")), "retrieval_by_type": pointing}
    probes = {kind: found for kind, rows in of_type.items() if (found := _probes(rows))}
    return out | ({"decodability": probes} if probes else {})


def _columns(records: Sequence[Mapping[str, Any]], group: str) -> dict[str, list[float]]:
    """The values of every figure of a group, over the records that have it."""
    columns: dict[str, list[float]] = {}
    for name, value in (pair for r in records for pair in (r["measures"].get(group) or {}).items()):
        # Records that travelled as a table have a field for whatever any of them has.
        if value is not None:
            columns.setdefault(name, []).append(value)
    return columns


def _shares(columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Shares with their interval, beside the chance of their scope (the first word of their name)."""
    return {
        name: asdict(paired_difference(values, [0.0] * len(values)))
        | {"n": len(values), "chance": _mean(columns[f"{name.split('_')[0]}_chance"])}
        for name, values in columns.items()
        if not name.endswith("_chance")
    }


def _of_batch(track: Track) -> dict[str, float]:
    out = {}
    for name, kind in _KINDS.items():
        vectors_ND = track.inputs_BLD[track.kinds_BL == kind].float().cpu()
        cosine = mean_cosine(vectors_ND)
        if cosine is not None:
            out[f"effective_rank_{name}"] = effective_rank(vectors_ND)
            out[f"mean_cosine_{name}"] = cosine
    return out


def _mean_latents(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """float32 (K, D) over all phases; zeros for a single phase, which would be its own mean."""
    phases = {
        (row, e.phase): None for row, rollout in enumerate(rollouts) for e in rollout.events if e.type == "latent"
    }
    latents = [rollouts[row].latents(phase).cpu().float() for row, phase in phases]
    if not latents:
        return torch.zeros(0, 0)
    return torch.stack(latents).mean(0) * float(len(latents) > 1)


def _retrieval(
    moments: Moments, row: int, rollout: Rollout, method: Method, common_KD: torch.Tensor
) -> dict[str, float]:
    """Means over the row's phases, each held against the look of its number."""
    kinds = {"visual": slice(0, method.num_visual), "audio": slice(method.num_visual, None)}
    counts = {"visual": method.num_visual, "audio": method.num_audio}
    points: dict[str, list[float]] = {}
    phases = {event.phase for event in rollout.events if event.type == "latent"}
    for phase in sorted(phases)[: moments.num_looks(row)]:
        latents_KD = rollout.latents(phase).cpu()
        for scope, (anchors_MKD, own) in (
            ("clip", moments.of_clip(row, phase)),
            ("batch", moments.of_batch(row, phase)),
        ):
            # A look as long as its clip has nothing to be told apart from.
            if len(anchors_MKD) < 2:
                continue
            points.setdefault(f"{scope}_chance", []).append(1 / len(anchors_MKD))
            for name, slots in kinds.items():
                if counts[name]:
                    point = retrieval_top1(latents_KD[slots], anchors_MKD[:, slots], own, common_KD=common_KD[slots])
                    points.setdefault(f"{scope}_{name}", []).append(point)
    return {name: _mean(values) for name, values in points.items()}


def _probes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The probe at every site, on the rows that have it."""
    out = {}
    for site in dict.fromkeys(site for r in records for site in r["measures"]["states"]):
        rows = [r for r in records if r["measures"]["states"].get(site) is not None]
        features_ND = torch.tensor([r["measures"]["states"][site] for r in rows])
        found = decodability(features_ND, [r["expected"] for r in rows], groups=[r["clip_id"] for r in rows])
        if found is not None:
            out[site] = asdict(found)
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
