"""Methods without latents: the answer alone, and the answer after a written chain of thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from omni_model.batch import Batch
from omni_model.heads import Heads
from omni_model.losses import Term
from omni_model.method_options import AnswerOnlyOptions, TextCotOptions
from omni_model.methods.trajectory import spoken
from omni_model.sequence import Kind, Media, PlanBuilder, Span
from omni_model.unroll import UnrollConfig, Unrolled
from omni_platform.schema import Sample, TextStep


@dataclass(frozen=True, kw_only=True)
class AnswerOnly(AnswerOnlyOptions):
    """Vanilla SFT: the question is followed by its answer."""

    name: ClassVar[str] = "sft"
    has_phases: ClassVar[bool] = False
    num_visual: ClassVar[int] = 0
    num_audio: ClassVar[int] = 0
    unroll: ClassVar[UnrollConfig] = UnrollConfig(engine="teacher_parallel")
    weights: ClassVar[dict[str, float]] = {}
    needs_anchors: ClassVar[bool] = False

    def write(self, builder: PlanBuilder, sample: Sample) -> None:
        answer = builder.template.taught_answer(sample.answer, sample.options)
        builder.text(answer, Kind.TEXT, learn=True).end_turn()

    def slot_offsets(self) -> tuple[torch.Tensor, int]:
        raise ValueError(f"method {self.name} has no latent phases")

    def build_heads(self, width: int) -> Heads:
        return Heads(width)

    def losses(self, heads: Heads, outcome: Unrolled, batch: Batch) -> dict[str, Term]:
        return {}

    def counts(self, spans: Sequence[Span], media: Media) -> dict[str, int]:
        return {}


@dataclass(frozen=True, kw_only=True)
class TextCot(TextCotOptions):
    """Explicit text chain of thought: the trajectory's words without its looks, by cross-entropy alone."""

    name: ClassVar[str] = "text_cot"
    has_phases: ClassVar[bool] = False
    num_visual: ClassVar[int] = 0
    num_audio: ClassVar[int] = 0
    unroll: ClassVar[UnrollConfig] = UnrollConfig(engine="teacher_parallel")
    weights: ClassVar[dict[str, float]] = {}
    needs_anchors: ClassVar[bool] = False

    def write(self, builder: PlanBuilder, sample: Sample) -> None:
        if not any(isinstance(step, TextStep) for step in sample.trajectory):
            raise ValueError(
                f"sample {sample.sample_id} has no trajectory, which text_cot learns; use method sft for bare answers"
            )
        for step in spoken(sample, self.words, builder.template):
            if isinstance(step, TextStep):
                builder.text(step.text, Kind.TEXT, learn=True)
            elif self.times:
                builder.text(f" at {step.start_s:g} s:", Kind.TEXT, learn=True)
        builder.end_turn()

    def slot_offsets(self) -> tuple[torch.Tensor, int]:
        raise ValueError(f"method {self.name} has no latent phases")

    def build_heads(self, width: int) -> Heads:
        return Heads(width)

    def losses(self, heads: Heads, outcome: Unrolled, batch: Batch) -> dict[str, Term]:
        return {}

    def counts(self, spans: Sequence[Span], media: Media) -> dict[str, int]:
        return {}
