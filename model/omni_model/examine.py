"""Examine an exported model on a batch of questions under every condition: its own, blind, and latents exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from omni_model.generate import LatentOverride, Rollout
from omni_model.probes import (
    BLIND,
    LATENT_CONTROLS,
    LatentControl,
    blind,
    choose_donors,
    control,
    paired_difference,
)
from omni_model.reason import Ask, Reasoner, Reply, load_reasoner
from omni_model.rows import PreparedRow
from omni_model.scoring import accuracy, accuracy_by_type, chance

OWN = "own"
CONDITIONS: tuple[str, ...] = (OWN, *BLIND, *(f"latents_{c}" for c in LATENT_CONTROLS))


class Examiner:
    """A model in an actor, answering batches of questions under the given conditions.

    Conditions on latents are left out for methods that have none.
    """

    def __init__(
        self,
        folder: str,
        *,
        conditions: Sequence[str] = CONDITIONS,
        max_new_tokens: int = 64,
        max_phases: int = 4,
        device: str = "auto",
    ) -> None:
        unknown = set(conditions) - set(CONDITIONS)
        if unknown:
            raise ValueError(f"unknown conditions {sorted(unknown)}; known: {', '.join(CONDITIONS)}")
        self._reasoner: Reasoner = load_reasoner(folder, device)
        self._conditions = tuple(conditions)
        self._limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_phases": max_phases}

    def __call__(self, rows: Sequence[PreparedRow]) -> list[dict[str, Any]]:
        """One record per row and condition: what was answered and whether it is right."""
        asks = [_ask(row) for row in rows]
        plans = [self._reasoner.plan(ask) for ask in asks]
        own = self._reasoner.rollouts(plans, **self._limits)
        records = self._records(rows, OWN, self._reasoner.replies(asks, plans, own))
        for which in BLIND:
            if which in self._conditions:
                replies = self._reasoner.answer([blind(ask, which) for ask in asks], **self._limits)
                records += self._records(rows, which, replies)
        for which in LATENT_CONTROLS:
            # Also where this batch never looked: every condition must answer every question.
            if f"latents_{which}" in self._conditions and self._reasoner.num_slots:
                changed = self._reasoner.rollouts(plans, override=_override(which, rows, own), **self._limits)
                replies = self._reasoner.replies(asks, plans, changed)
                records += self._records(rows, f"latents_{which}", replies)
        return records

    def _records(self, rows: Sequence[PreparedRow], condition: str, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        return [
            {
                "sample_id": row.sample.sample_id,
                "question_type": row.sample.question_type,
                "condition": condition,
                "options": list(row.sample.options),
                "expected": row.sample.answer,
                "answer": reply.answer,
                "text": reply.text,
                "right": reply.answer.lower() == row.sample.answer.lower(),
                "latent_phases": len(reply.phases),
                "looked_right": _looked_right(row, reply) if condition == OWN else None,
                "completion_tokens": reply.completion_tokens,
                "latent_steps": reply.latent_steps,
            }
            for row, reply in zip(rows, replies, strict=True)
        ]


def _override(which: LatentControl, rows: Sequence[PreparedRow], own: Sequence[Rollout]) -> LatentOverride:
    if which == "other":
        kinds = [row.sample.question_type for row in rows]
        return control(which, own, donors=choose_donors([row.clip_id for row in rows], kinds))
    anchors = [torch.from_numpy(np.asarray(row.anchors, np.float32)) for row in rows]
    return control(which, own, anchors=anchors)


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

    `costs` are paired differences, own minus control, over the same questions.
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
        "unreadable_share": sum(not r["answer"] for r in own) / len(own),
        "looked_right_share": sum(looked) / len(looked) if looked else None,
        "latent_phases_mean": sum(r["latent_phases"] for r in own) / len(own),
        "completion_tokens_mean": sum(r["completion_tokens"] for r in own) / len(own),
        "latent_steps_mean": sum(r["latent_steps"] for r in own) / len(own),
    }
