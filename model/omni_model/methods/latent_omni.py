"""LatentOmni (arXiv 2605.22012): trigger, K latent slots anchored in a moment of the clip, forced stop, then words."""

# B = rows, P = phases, K = slots, D = model width, N = features of a segment, S = segments,
# L = positions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from omni_model.batch import Batch
from omni_model.heads import Heads, SyncHeads
from omni_model.losses import Term, contrastive_loss, cosine_loss, regression_loss, sync_loss
from omni_model.method_options import LatentOmniOptions
from omni_model.methods.trajectory import write_trajectory
from omni_model.pooling import norm_weighted_pool
from omni_model.positions import clip_times, latent_offsets
from omni_model.processing import MERGE
from omni_model.sequence import Kind, Media, PlanBuilder, Span
from omni_model.unroll import UnrollConfig, Unrolled
from omni_platform.schema import Sample

_MAX_MOMENTS = 40
_MIN_TOKENS = 2
"""Of each sense in a segment that the sync loss compares."""


@dataclass(frozen=True, kw_only=True)
class LatentOmni(LatentOmniOptions):
    """The method with its options. The defaults are the paper's, except that slots are fed the model's own latents."""

    name: ClassVar[str] = "latent_omni"
    has_phases: ClassVar[bool] = True
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        # The engine's own checks, now rather than at the first step.
        _ = self.unroll

    @property
    def unroll(self) -> UnrollConfig:
        return UnrollConfig(
            engine=self.engine,
            gradient=self.gradient,
            teacher_share=self.teacher_share,
            teacher_share_end=self.teacher_share_end,
            jacobi_sweeps=self.jacobi_sweeps,
            jacobi_tolerance=self.jacobi_tolerance,
            jacobi_start=self.jacobi_start,
            jacobi_carry=self.jacobi_carry,
            bottleneck=self.bottleneck,
            bottleneck_until=self.bottleneck_until,
        )

    @property
    def weights(self) -> dict[str, float]:
        return {"latent": self.latent_weight, "sync": self.sync_weight}

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
        return Heads(width, feedback=self.feedback, norm_match=self.norm_match, sync=self.sync_weight > 0)

    def losses(self, heads: Heads, outcome: Unrolled, batch: Batch) -> dict[str, Term]:
        sync = Term(outcome.hidden_BLD.sum() * 0.0, 0)
        if heads.sync is not None:
            sync = self._sync(heads.sync, outcome, batch)
        return {"latent": self._latent(outcome, batch), "sync": sync}

    def counts(self, spans: Sequence[Span], media: Media) -> dict[str, int]:
        slots = len(spans) * (self.num_visual + self.num_audio)
        return {"latent": slots, "sync": _count_usable(spans, media) if self.sync_weight > 0 else 0}

    def _latent(self, outcome: Unrolled, batch: Batch) -> Term:
        if batch.anchors_BPKD is None:
            raise ValueError("the latent loss needs anchors; preprocess the manifest with its trajectories")
        latents, anchors, present = outcome.latents_BPKD, batch.anchors_BPKD, outcome.present_BP
        if self.normalise_anchors:
            anchors = F.normalize(anchors.float(), dim=-1) * anchors.shape[-1] ** 0.5
        if self.latent_loss == "mse":
            return regression_loss(latents, anchors, present, reduction=self.latent_reduction)
        if self.latent_loss == "cosine":
            return cosine_loss(latents, anchors, present)
        others = batch.others_MKD if self.latent_negatives == "clip" else None
        return contrastive_loss(latents, anchors, present, temperature=self.latent_temperature, others_MKD=others)

    def _sync(self, heads: SyncHeads, outcome: Unrolled, batch: Batch) -> Term:
        """Eq. 4 on the clip's live features within each segment of the batch, counted by segment.

        The features are those of the sequence itself, not of a clip encoded apart: they carry gradient into the
        towers, so the loss can change the model. Segments with fewer than two tokens of a modality are left out.
        """
        usable = [pair for pair in _segment_features(outcome, batch) if min(map(len, pair)) >= _MIN_TOKENS]
        # Every worker uses the same weights in every step, also on the way back, or exchanges would not match: what
        # stands for no segment hangs on the towers as a segment does.
        encoded = outcome.encoded
        nothing = [f.sum() * 0.0 + f.new_zeros(2, f.shape[-1]) for f in (encoded.visual_ND, encoded.audio_ND)]
        visual, audio = zip(*(usable or [nothing]), strict=True)
        if self.detach_sync_inputs:
            visual, audio = [v.detach() for v in visual], [a.detach() for a in audio]
        visual_ND, audio_ND, scale = heads(torch.cat(visual), torch.cat(audio))
        projected = zip(_split_like(visual_ND, visual), _split_like(audio_ND, audio), strict=True)
        # Segments of one shape together: one by one they would be thousands of small kernels.
        shapes: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for v_ND, a_ND in projected:
            shapes.setdefault((len(v_ND), len(a_ND)), []).append((v_ND, a_ND))
        terms = []
        for alike in shapes.values():
            visual_SND, audio_SND = (torch.stack(of_sense) for of_sense in zip(*alike, strict=True))
            terms.append(len(alike) * _sync_of_segments(visual_SND, audio_SND, scale))
        return Term(torch.stack(terms).sum() * float(bool(usable)), len(usable))


def _split_like(joined_ND: torch.Tensor, pieces: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    return joined_ND.split([len(piece) for piece in pieces])


def _sync_of_segments(visual_SND: torch.Tensor, audio_SND: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Both senses pooled to as many moments as the scarcer one has features, at most 40; mean over segments."""
    moments = min(_MAX_MOMENTS, visual_SND.shape[1], audio_SND.shape[1])
    return sync_loss(norm_weighted_pool(visual_SND, moments), norm_weighted_pool(audio_SND, moments), scale)


def _count_usable(spans: Sequence[Span], media: Media) -> int:
    """How many segments the sync loss compares, counted from the clip's shape as `_segment_features` finds them."""
    times_s = clip_times(
        grid_thw=media.grid_thw, merge=MERGE, seconds_per_grid=media.seconds_per_grid, num_audio=media.num_audio_tokens
    )
    count = 0
    for span in spans:
        start_s, end_s = torch.tensor([span.start_s, span.end_s])
        count += min(int(((t >= start_s) & (t < end_s)).sum()) for t in times_s) >= _MIN_TOKENS
    return count


def _segment_features(outcome: Unrolled, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of every phase the row's own visual and audio features whose time lies in its segment, in token order."""
    row_S, phase_S = outcome.present_BP.nonzero(as_tuple=True)
    span_S2 = batch.looks_s_BP2[row_S, phase_S]
    pieces = []
    for kind, features_ND in ((Kind.VISUAL, outcome.encoded.visual_ND), (Kind.AUDIO, outcome.encoded.audio_ND)):
        taken_SL = batch.within(kind, row_S, span_S2)
        pieces.append(features_ND[batch.source_BL[row_S][taken_SL]].split(taken_SL.sum(1).tolist()))
    return list(zip(*pieces, strict=True))
