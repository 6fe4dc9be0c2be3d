"""Examine an exported model on a batch of questions under every condition: as it is, blind, and interfered with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from omni_model.anchors import encode_anchors
from omni_model.device import pick_device, weights_dtype
from omni_model.folder import load_folder
from omni_model.generate import Rollout
from omni_model.measures import measure, summarise_measures
from omni_model.moments import Moments, Span, moments_of
from omni_model.pooling import pool_segments
from omni_model.probes import (
    BLIND,
    INTERVENTIONS,
    blind,
    paired_difference,
)
from omni_model.processing import resize_frames
from omni_model.reason import Ask, Reasoner, Reply
from omni_model.rows import PreparedRow
from omni_model.scoring import accuracy, accuracy_by_type, chance
from omni_model.sequence import Plan
from omni_model.sitting import OWN, Sitting

logger = logging.getLogger(__name__)

CONDITIONS: tuple[str, ...] = (OWN, *BLIND, "latents_zero", "latents_noise", "latents_other", "latents_gold")
"""What every evaluation runs."""
ALL_CONDITIONS: tuple[str, ...] = (OWN, *BLIND, *INTERVENTIONS)
"""Every probe there is, at about twice the time."""


class Examiner:
    """A model in an actor, answering batches of questions under the given conditions.

    Conditions that change nothing for the model's method are left out (`interventions_for`). `measured` adds to the
    model's own records where it looks, what its latents are like, and what a linear probe reads (`measure`).
    """

    def __init__(
        self,
        folder: str,
        *,
        conditions: Sequence[str] = CONDITIONS,
        measured: bool = False,
        max_new_tokens: int = 64,
        max_phases: int = 4,
        device: str = "auto",
    ) -> None:
        unknown = set(conditions) - set(ALL_CONDITIONS)
        if unknown:
            raise ValueError(f"unknown conditions {sorted(unknown)}; known: {', '.join(ALL_CONDITIONS)}")
        device = pick_device(device)
        self._model = load_folder(folder, dtype=weights_dtype(device))
        self._reasoner = Reasoner(self._model, device)
        self._conditions, self._measured, self._device = tuple(conditions), measured, device
        self._max_new_tokens, self._max_phases = max_new_tokens, max_phases
        self._told_no_gold = False

    def __call__(self, rows: Sequence[PreparedRow]) -> list[dict[str, Any]]:
        """One record per row and condition: what was answered and whether it is right."""
        asks = [_ask(row) for row in rows]
        plans = self._plans(rows, asks)
        sitting = Sitting(
            model=self._model,
            samples=[row.sample for row in rows],
            clip_ids=[row.clip_id for row in rows],
            plans=plans,
            anchors=[self._gold(row) for row in rows],
            max_new_tokens=self._max_new_tokens,
            max_phases=self._max_phases,
            device=self._device,
        )
        own = sitting.own()
        blinded = {
            which: self._plans(rows, [blind(ask, which) for ask in asks])
            for which in BLIND
            if which in self._conditions
        }
        records = sitting.records(own, self._conditions, blinded)
        # Own records come first.
        self._add_own(records[: len(rows)], rows, asks, plans, own)
        return records

    def _gold(self, row: PreparedRow) -> torch.Tensor:
        """Anchors of a row's looks for the model's slots, float32 (S, K, D); without a slot where there are none.

        Folders prepared with other towers, or in bins that do not give these slots, have none for this model.
        """
        method, width = self._model.method, self._model.loaded.backbone.width
        if method.num_visual + method.num_audio == 0:
            return torch.zeros(len(row.sample.looks), 0, width)
        try:
            return pool_segments(row.anchors, num_visual=method.num_visual, num_audio=method.num_audio, width=width)
        except ValueError as error:
            if not self._told_no_gold:
                logger.warning("latents_gold is left out: %s", error)
            self._told_no_gold = True
            return torch.zeros(len(row.anchors), 0, width)

    def _plans(self, rows: Sequence[PreparedRow], asks: Sequence[Ask]) -> list[Plan]:
        """Prompts; those about one clip share its media, which is then encoded and run once."""
        plans = [self._reasoner.plan(ask) for ask in asks]
        media = {row.clip_id: plan.media for row, plan in zip(rows, plans, strict=True)}
        return [replace(plan, media=media[row.clip_id]) for row, plan in zip(rows, plans, strict=True)]

    def _add_own(
        self,
        records: list[dict[str, Any]],
        rows: Sequence[PreparedRow],
        asks: Sequence[Ask],
        plans: Sequence[Plan],
        own: Sequence[Rollout],
    ) -> None:
        """What only own answers are asked for: the moments that latents resemble, and the measures."""
        if self._reasoner.num_slots:
            for record, row, reply in zip(records, rows, self._reasoner.replies(asks, plans, own), strict=True):
                record["looked_right"] = _looked_right(row, reply)
                record["moments"] = [
                    {"phase": i} | asdict(moment) for i, phase in enumerate(reply.phases) for moment in phase.moments
                ]
        if self._measured:
            moments = self._moments(rows) if self._reasoner.num_slots else None
            figures = measure(
                self._model.loaded.backbone, self._model.method, plans, own, moments=moments, device=self._device
            )
            for record, of_row in zip(records, figures, strict=True):
                record["measures"] = of_row

    def _moments(self, rows: Sequence[PreparedRow]) -> Moments:
        """The looks of a batch and their rivals, encoded by the model's own towers as anchors are."""
        model, method = self._model, self._model.method
        prepare = self._model.preparation

        def encode(row: PreparedRow, spans: list[Span]) -> np.ndarray:
            frames = resize_frames(row.frames, min_pixels=prepare.video_min_pixels, max_pixels=prepare.video_max_pixels)
            return encode_anchors(
                model.loaded.backbone,
                frames=frames,
                sample_fps=row.sample_fps,
                waveform=row.waveform if prepare.use_audio_in_video else None,
                spans=spans,
                num_visual=method.num_visual,
                num_audio=method.num_audio,
                device=self._device,
            )

        return moments_of(rows, encode)


def _ask(row: PreparedRow) -> Ask:
    return Ask(
        question=row.sample.question,
        frames=row.frames,
        sample_fps=row.sample_fps,
        waveform=row.waveform,
        options=row.sample.options,
    )


def _looked_right(row: PreparedRow, reply: Reply) -> float | None:
    """Share of the first phases' nearest moments that begin within the segment the trajectory looks at."""
    hits = [
        look.start_s <= moment.start_s < look.end_s
        for look, phase in zip(row.sample.looks, reply.phases, strict=False)
        for moment in phase.moments
    ]
    return sum(hits) / len(hits) if hits else None


def summarise(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies with intervals by condition and question type, chance, and what each control costs.

    `costs` are paired differences, own minus control, over the same questions. `measures` holds what was measured
    beside the answers (`summarise_measures`) and, where latents were exchanged between clips, `donor_following`.
    """
    conditions = list(dict.fromkeys(r["condition"] for r in records))
    by_condition = {c: [r for r in records if r["condition"] == c] for c in conditions}
    own = by_condition[OWN]
    looked = [r["looked_right"] for r in own if r["looked_right"] is not None]
    return {
        "n": len(own),
        "chance": chance([r["options"] for r in own]),
        "conditions": {
            condition: {
                "all": asdict(accuracy(r["right"] for r in rows)),
                "by_type": {
                    kind: asdict(figure)
                    for kind, figure in accuracy_by_type(
                        [r["question_type"] for r in rows], [r["right"] for r in rows]
                    ).items()
                },
            }
            for condition, rows in by_condition.items()
        },
        "costs": {
            condition: asdict(paired_difference([r["right"] for r in own], [r["right"] for r in rows]))
            for condition, rows in by_condition.items()
            if condition != OWN
        },
        "measures": _donor_following(by_condition.get("latents_other", [])) | summarise_measures(own),
        "unreadable_share": sum(not r["answer"] for r in own) / len(own),
        "looked_right_share": sum(looked) / len(looked) if looked else None,
        "latent_phases_mean": sum(r["latent_phases"] for r in own) / len(own),
        "completion_tokens_mean": sum(r["completion_tokens"] for r in own) / len(own),
        "latent_steps_mean": sum(r["latent_steps"] for r in own) / len(own),
    }


def _donor_following(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often an answer is what the donor's question asks for, where that is another option of the question."""
    telling = [
        r
        for r in records
        if r["donor_expected"].lower() != r["expected"].lower()
        and (not r["options"] or r["donor_expected"].lower() in [option.lower() for option in r["options"]])
    ]
    follows = [r["answer"].lower() == r["donor_expected"].lower() for r in telling]
    return {"donor_following": asdict(accuracy(follows))} if follows else {}
