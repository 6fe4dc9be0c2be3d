"""One batch of questions put to a model under every condition asked for: as it is, blind, and interfered with."""

# P = phases, K = slots, D = model width.

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from omni_model.folder import Exported
from omni_model.generate import Rollout, generate
from omni_model.probes import Intervention, Name, choose_donors, intervene, interventions_for
from omni_model.scoring import parse_answer
from omni_model.sequence import Plan
from omni_platform.schema import Sample

OWN = "own"


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """A model and the questions that it is asked together; everything is by row."""

    model: Exported
    samples: Sequence[Sample]
    clip_ids: Sequence[str]
    plans: Sequence[Plan]
    """Prompts."""
    anchors: Sequence[torch.Tensor]
    """float (P, K, D)"""
    max_new_tokens: int
    max_phases: int
    device: str = "cpu"

    def own(self) -> list[Rollout]:
        """The answers of the model as it is."""
        return self._rollouts(self.plans, Intervention(method=self.model.method, max_phases=self.max_phases))

    def records(
        self, own: Sequence[Rollout], conditions: Sequence[str], blind: Mapping[str, Sequence[Plan]]
    ) -> list[dict[str, Any]]:
        """One record a row and condition. `blind` holds the prompts of conditions that change the clip."""
        usual = Intervention(method=self.model.method, max_phases=self.max_phases)
        records = self._records(OWN, own)
        for name, plans in blind.items():
            records += self._records(name, self._rollouts(plans, usual))
        # Also where this batch never looked: every condition must answer every question.
        for name in interventions_for(self.model.method, gold=self._has_gold()):
            if name in conditions:
                records += self._interfered(name, own)
        return records

    def _interfered(self, name: Name, own: Sequence[Rollout]) -> list[dict[str, Any]]:
        donors = None
        if name == "latents_other":
            kinds = [sample.question_type for sample in self.samples]
            donors = choose_donors(self.clip_ids, kinds, [sample.answer for sample in self.samples])
        given = intervene(
            name,
            self.model.method,
            own,
            max_phases=self.max_phases,
            donors=donors,
            anchors=self.anchors,
            # Another batch, another noise; the same batch, the same.
            seed=zlib.crc32(" ".join(sample.sample_id for sample in self.samples).encode()),
        )
        records = self._records(name, self._rollouts(self.plans, given))
        for record, donor in zip(records, donors or [], strict=donors is not None):
            record["donor_expected"] = self.samples[donor].answer
        return records

    def _has_gold(self) -> bool:
        shape = (self.model.method.num_visual + self.model.method.num_audio, self.model.loaded.backbone.width)
        return all(tuple(anchors.shape[1:]) == shape for anchors in self.anchors)

    def _rollouts(self, plans: Sequence[Plan], given: Intervention) -> list[Rollout]:
        return generate(
            self.model.loaded.backbone,
            self.model.heads,
            given.method,
            self.model.loaded.vocabulary,
            plans,
            max_new_tokens=self.max_new_tokens,
            max_phases=given.max_phases,
            override=given.override,
            hide_latents=given.hide_latents,
            device=self.device,
        )

    def _records(self, condition: str, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
        return [
            self._record(sample, clip_id, condition, rollout)
            for sample, clip_id, rollout in zip(self.samples, self.clip_ids, rollouts, strict=True)
        ]

    def _record(self, sample: Sample, clip_id: str, condition: str, rollout: Rollout) -> dict[str, Any]:
        text = str(self.model.loaded.tokenizer.decode(rollout.tokens, skip_special_tokens=True)).strip()
        lettered = self.model.preparation.prompt.options == "lettered"
        answer = parse_answer(text, sample.options, lettered=lettered)
        return {
            "sample_id": sample.sample_id,
            "clip_id": clip_id,
            "question_type": sample.question_type,
            "condition": condition,
            "options": list(sample.options),
            "expected": sample.answer,
            "answer": answer,
            "text": text,
            "right": answer.lower() == sample.answer.lower(),
            "latent_phases": len({event.phase for event in rollout.events} - {-1}),
            "looked_right": None,
            "completion_tokens": len(rollout.tokens),
            "latent_steps": rollout.latent_steps,
        }
