"""The losses as pure functions: each a sum and the number of what it was summed over, with no weight of its own.

A mean is taken only once, over the whole optimizer step: sums and counts of micro-batches and workers can be added,
means of unequal parts cannot. A micro-batch alone has the mean `Term.mean`.
"""

# B = rows, L = positions, P = phases, K = slots, D = width, V = vocabulary, N = latents' phases, M = other segments,
# C = candidates, S = segments, T = moments of a segment.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from omni_model.method_options import Reduction
from omni_model.sequence import IGNORE


@dataclass(frozen=True)
class Term:
    """One loss over a batch."""

    total: torch.Tensor
    """Scalar with gradient: the sum over everything that counts; zero, with gradient, where nothing does."""
    count: int
    """How many there are: learned tokens, slots, segments, ..."""

    @property
    def mean(self) -> torch.Tensor:
        return self.total / max(1, self.count)


def text_loss(logits_NV: torch.Tensor, labels_N: torch.Tensor, learned_BL: torch.Tensor | None = None) -> Term:
    """Cross-entropy over learned tokens (LatentOmni Eq. 6): counted by token, every token alike.

    With `learned_BL` (bool, where the N tokens stand in their rows) it is counted by sample instead: every row brings
    the mean over its own tokens, so that a long answer weighs no more than a short one.
    """
    if len(labels_N) == 0:
        return Term(logits_NV.sum() * 0.0, 0)
    if learned_BL is None:
        return Term(F.cross_entropy(logits_NV.float(), labels_N, reduction="sum"), len(labels_N))
    of_token_N = F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
    tokens_B = learned_BL.sum(1)
    weight_N = (1.0 / tokens_B.clamp(min=1))[learned_BL.nonzero(as_tuple=True)[0]]
    return Term((weight_N * of_token_N).sum(), int((tokens_B > 0).sum()))


def learned_positions(labels_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool (B, L - 1) of positions whose next token is learned, and those tokens (N,)."""
    following = labels_BL[:, 1:]
    learned = following != IGNORE
    return learned, following[learned]


def regression_loss(
    latents_BPKD: torch.Tensor,
    anchors_BPKD: torch.Tensor,
    present_BP: torch.Tensor,
    *,
    reduction: Reduction,
    slots: slice = slice(None),
) -> Term:
    """Squared distance of latents to anchors (LatentOmni Eq. 5), counted by slot of the present phases.

    Over the width it is a `sum`, as the paper writes, or a `mean`, as its code computes: they differ by a factor D.
    """
    distance = (latents_BPKD.float() - anchors_BPKD.detach().float()).square()[:, :, slots]
    over_width = distance.sum(-1) if reduction == "sum" else distance.mean(-1)
    return _sum_over_phases(over_width, present_BP)


def cosine_loss(latents_BPKD: torch.Tensor, anchors_BPKD: torch.Tensor, present_BP: torch.Tensor) -> Term:
    """One minus cosine similarity of latents and anchors, counted by slot of the present phases."""
    similarity = F.cosine_similarity(latents_BPKD.float(), anchors_BPKD.detach().float(), dim=-1)
    return _sum_over_phases(1.0 - similarity, present_BP)


def contrastive_loss(
    latents_BPKD: torch.Tensor,
    anchors_BPKD: torch.Tensor,
    present_BP: torch.Tensor,
    *,
    temperature: float,
    others_MKD: torch.Tensor | None = None,
) -> Term:
    """InfoNCE: each latent must be nearer to its own segment's anchor than to the other segments of the batch.

    `others_MKD` are anchors of further segments to tell the right one from, such as the rest of each clip. Slot by
    slot, on cosines of anchors with the mean of all candidates removed; segments that are the same moment of the same
    clip do not count as negatives. Counted by slot of the present phases. An average of all anchors, which squared
    error is content with, scores chance here.

    It couples the rows of a batch: what a segment is told from is what stands in the same micro-batch, so the terms
    that are summed up, unlike those of the other losses, depend on how a step is cut into micro-batches.
    """
    latents, own_NKD = latents_BPKD[present_BP].float(), anchors_BPKD[present_BP].detach().float()
    if len(latents) == 0:
        return Term(latents_BPKD.sum() * 0.0, 0)
    candidates = own_NKD if others_MKD is None else torch.cat([own_NKD, others_MKD.detach().float()])
    centred = candidates - candidates.mean(0, keepdim=True)
    scores_KNC = torch.einsum("nkd,ckd->knc", F.normalize(latents, dim=-1), F.normalize(centred, dim=-1))
    # The same segment encoded in another batch differs by rounding; the fast distance would differ by more.
    flat = candidates.flatten(1)
    distance_NC = torch.cdist(flat[: len(latents)], flat, compute_mode="donot_use_mm_for_euclid_dist")
    same_NC = distance_NC < 1e-3 * flat.norm(dim=-1)
    same_NC.fill_diagonal_(False)
    scores_KNC = (scores_KNC / temperature).masked_fill(same_NC, float("-inf"))
    own = torch.arange(len(latents), device=latents.device).expand(len(scores_KNC), -1)
    return Term(F.cross_entropy(scores_KNC.flatten(0, 1), own.flatten(), reduction="sum"), own.numel())


def sync_loss(visual_STD: torch.Tensor, audio_STD: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE between the two modalities of each segment (LatentOmni Eq. 4), mean over segments and their T
    moments.

    Rows of one index belong together; the other moments of the segment are the negatives. `scale` is the inverse
    temperature.
    """
    scores_STT = scale * F.normalize(visual_STD, dim=-1) @ F.normalize(audio_STD, dim=-1).mT
    own = torch.arange(scores_STT.shape[-1], device=scores_STT.device).repeat(len(scores_STT))
    return (F.cross_entropy(scores_STT.flatten(0, 1), own) + F.cross_entropy(scores_STT.mT.flatten(0, 1), own)) / 2


def _sum_over_phases(per_slot_BPK: torch.Tensor, present_BP: torch.Tensor) -> Term:
    """Over the slots of the phases that exist; zero, with gradient, where none does."""
    kept = per_slot_BPK[present_BP]
    return Term(kept.sum() if kept.numel() else per_slot_BPK.sum() * 0.0, kept.numel())
