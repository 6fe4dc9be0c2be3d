"""What a method is: how a sample's answer is laid out, how its slots are unrolled, and which raw losses it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from omni_model.batch import Batch
from omni_model.heads import Heads
from omni_model.losses import Term
from omni_model.sequence import Media, PlanBuilder, Span
from omni_model.unroll import UnrollConfig, Unrolled
from omni_platform.schema import Sample


class Method(Protocol):
    """The seam between one method and the house. Instances are frozen dataclasses of options."""

    name: str

    @property
    def has_phases(self) -> bool:
        """Whether trajectories have phases, which a trigger opens; a phase may have no slots."""
        ...

    @property
    def num_visual(self) -> int:
        """Visual slots of a phase; 0 for methods without latents."""
        ...

    @property
    def num_audio(self) -> int:
        """Audio slots of a phase."""
        ...

    @property
    def needs_anchors(self) -> bool:
        """Whether training reads anchors of the looks. Methods that do not take data with anchors of any kind."""
        ...

    @property
    def unroll(self) -> UnrollConfig:
        """How slots are computed in training, and who sees whom."""
        ...

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every raw loss that `losses` names; the text loss has weight 1."""
        ...

    def write(self, builder: PlanBuilder, sample: Sample) -> None:
        """Lay out the assistant's turn."""
        ...

    def slot_offsets(self) -> tuple[torch.Tensor, int]:
        """Position ids of a phase's slots after its trigger, int64 (3, K), and the offset of its stop token.

        Training and decoding both ask here, so that positions cannot differ between them.
        """
        ...

    def build_heads(self, width: int) -> Heads:
        """Weights of the method's own beside the backbone's, `feedback` among them."""
        ...

    def losses(self, heads: Heads, outcome: Unrolled, batch: Batch) -> dict[str, Term]:
        """Named raw losses beside the text loss, each as a sum with its count."""
        ...

    def counts(self, spans: Sequence[Span], media: Media) -> dict[str, int]:
        """By name, what a row adds to the count of every loss of `losses`.

        `spans` are the row's latent phases; of its clip only the shape is read.
        """
        ...
