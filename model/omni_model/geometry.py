"""What kind of vectors latents are: their size, how many directions they use, and which moment they point at."""

# N = vectors, M = moments to choose from, K = slots of one kind, D = model width.

from __future__ import annotations

import torch
import torch.nn.functional as F

_TIE = 1e-5
"""Cosines as near as this are a tie: the same moment encoded in another batch differs by rounding."""


def norm_ratio(latents_ND: torch.Tensor, features_MD: torch.Tensor) -> float:
    """Size of fed latents against the clip's features: root mean square over root mean square, 1 for alike.

    Hidden states after the final norm are often tens of times larger than anything the model is used to read
    (arXiv 2605.12374). Infinite for features that are all zero.
    """
    scale = features_MD.float().square().mean().sqrt()
    return float(latents_ND.float().square().mean().sqrt() / scale)


def effective_rank(vectors_ND: torch.Tensor) -> float:
    """How many directions vectors use: exp of the entropy of the normalised singular values, after centring.

    From 1, all on one line, to min(N - 1, D) (Roy and Vetterli, 2007). 0 for vectors that are all the same.
    """
    x_ND = vectors_ND.double()
    singular = torch.linalg.svdvals(x_ND - x_ND.mean(0))
    # Rounding leaves something of vectors that are equal, which normalising would blow up.
    if float(singular.sum()) <= 1e-6 * float(x_ND.norm()):
        return 0.0
    p = singular / singular.sum()
    return float(torch.special.entr(p).sum().exp())


def mean_cosine(vectors_ND: torch.Tensor) -> float | None:
    """Mean cosine over all pairs: near 1 where latents hardly differ. None for fewer than two vectors."""
    count = len(vectors_ND)
    if count < 2:
        return None
    unit_ND = F.normalize(vectors_ND.double(), dim=-1)
    # The sum over all ordered pairs is the square of the sum; what is left over are the vectors with themselves.
    total = unit_ND.sum(0).square().sum() - unit_ND.square().sum()
    return float(total / (count * (count - 1)))


def retrieval_top1(
    latents_KD: torch.Tensor, candidates_MKD: torch.Tensor, own: int, *, common_KD: torch.Tensor | float = 0.0
) -> float:
    """Whether the latents of a phase point at their own moment: 1 if its anchors are the nearest of all, else 0.

    A moment's score is the mean over slots of the cosine of latent and anchor. What all moments share does not tell
    them apart, so the candidates' mean in a slot is taken from its anchors, and from the latents `common_KD`: what
    latents have in common, such as their mean over many phases, which may lie elsewhere (InfoNCE leaves it free).
    Moments that tie for the first place, such as stretches of silence, share the point, so that chance is 1 / M
    whatever the candidates. Give visual and audio slots one at a time.
    """
    candidates = candidates_MKD.float()
    scores_M = F.cosine_similarity(candidates - candidates.mean(0), latents_KD.float() - common_KD, dim=-1).mean(-1)
    best_M = scores_M >= scores_M.max() - _TIE
    return float(best_M[own]) / int(best_M.sum())
