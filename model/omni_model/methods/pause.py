"""Controls with the form of latents and nothing in them: pause tokens, and bare markers.

What they gain over the same data without slots is owed to the form: more positions to compute in, or a mark that says
"look now". What latents gain beyond them is owed to the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from omni_model.batch import Batch
from omni_model.heads import Heads
from omni_model.losses import Term
from omni_model.method_options import MarkerOptions, PauseOptions
from omni_model.methods.trajectory import write_trajectory
from omni_model.positions import latent_offsets
from omni_model.sequence import Media, PlanBuilder, Span
from omni_model.unroll import UnrollConfig, Unrolled
from omni_platform.schema import Sample


@dataclass(frozen=True, kw_only=True)
class PauseTokens(PauseOptions):
    """The slots of LatentOmni, each fed one and the same learned vector (arXiv 2310.02226)."""

    name: ClassVar[str] = "pause"
    has_phases: ClassVar[bool] = True
    weights: ClassVar[dict[str, float]] = {}
    needs_anchors: ClassVar[bool] = False

    @property
    def unroll(self) -> UnrollConfig:
        # One pass over everything: what slots are fed is known beforehand.
        return UnrollConfig(engine="recurrent", bottleneck=self.bottleneck)

    def write(self, builder: PlanBuilder, sample: Sample) -> None:
        write_trajectory(
            builder,
            sample,
            method=self.name,
            num_visual=self.num_visual,
            num_audio=self.num_audio,
            offsets=self.slot_offsets(),
            max_phases=self.max_train_phases,
            words=self.words,
        )

    def slot_offsets(self) -> tuple[torch.Tensor, int]:
        return latent_offsets(self.ospe, num_visual=self.num_visual, num_audio=self.num_audio, segment_s=self.segment_s)

    def build_heads(self, width: int) -> Heads:
        return Heads(width, feedback="constant", norm_match=self.norm_match)

    def losses(self, heads: Heads, outcome: Unrolled, batch: Batch) -> dict[str, Term]:
        return {}

    def counts(self, spans: Sequence[Span], media: Media) -> dict[str, int]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Markers(MarkerOptions):
    """Trigger and stop with no slot between them."""

    name: ClassVar[str] = "markers"
    has_phases: ClassVar[bool] = True
    num_visual: ClassVar[int] = 0
    num_audio: ClassVar[int] = 0
    weights: ClassVar[dict[str, float]] = {}
    needs_anchors: ClassVar[bool] = False

    @property
    def unroll(self) -> UnrollConfig:
        return UnrollConfig(engine="teacher_parallel", bottleneck=self.bottleneck)

    def write(self, builder: PlanBuilder, sample: Sample) -> None:
        write_trajectory(
            builder,
            sample,
            method=self.name,
            num_visual=0,
            num_audio=0,
            offsets=self.slot_offsets(),
            max_phases=self.max_train_phases,
            words=self.words,
        )

    def slot_offsets(self) -> tuple[torch.Tensor, int]:
        return torch.zeros(3, 0, dtype=torch.long), 0

    def build_heads(self, width: int) -> Heads:
        return Heads(width)

    def losses(self, heads: Heads, outcome: Unrolled, batch: Batch) -> dict[str, Term]:
        return {}

    def counts(self, spans: Sequence[Span], media: Media) -> dict[str, int]:
        return {}
