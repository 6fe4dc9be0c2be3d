"""Where the answer can be read off: a linear probe on the clip, on the latents, and on what comes after them.

An answer that a line can tell at the latents has reached them; one that only the clip holds has not. Being there is not
being used: that is what the exchanges of `probes.py` show.
"""

# B = rows, L = positions, N = rows of a data set, D = width of the features, C = classes (answers), R = directions,
# S = ridge strengths.

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from omni_model.replay import Replay
from omni_model.scoring import accuracy
from omni_model.sequence import Kind

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties to choose from, as multiples of the number of rows."""


@torch.no_grad()
def read_states(replayed: Replay) -> list[dict[str, torch.Tensor]]:
    """What the probe is given of every row: float32 (D,) by site.

    * `media`: mean hidden state over the clip. The clip stands before the question and does not know it.
    * `question`: hidden state at the end of the prompt.
    * `latents`: mean of the fed latents, of all phases.
    * `after`: hidden state at the stop of the last phase, which predicts the first word after it.

    A row without phases has no `after`, one without slots no `latents`.
    """
    track, hidden_BLD = replayed.track, replayed.hidden_BLD.float().cpu()
    inputs_BLD, media_BL, latents_BL = track.inputs_BLD.float().cpu(), track.is_media.cpu(), track.is_latent.cpu()
    stops_BL, generated_BL, kinds_BL = track.kinds_BL.cpu() == Kind.STOP, track.generated_BL.cpu(), track.kinds_BL.cpu()
    out = []
    for row in range(len(hidden_BLD)):
        prompt = (kinds_BL[row] != Kind.PAD) & ~generated_BL[row]
        states = {"media": hidden_BLD[row, media_BL[row]].mean(0), "question": hidden_BLD[row, int(prompt.sum()) - 1]}
        if bool(latents_BL[row].any()):
            states["latents"] = inputs_BLD[row, latents_BL[row]].mean(0)
        if bool(stops_BL[row].any()):
            states["after"] = hidden_BLD[row, int(stops_BL[row].nonzero()[-1])]
        out.append(states)
    return out


@dataclass(frozen=True, kw_only=True)
class Decodability:
    """Accuracy of a linear probe on rows that it has not learned from, with its 95 % Wilson interval."""

    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    """Share of the commonest answer."""


def decodability(
    features_ND: torch.Tensor,
    answers: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    folds: int = 5,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Decodability | None:
    """Ridge regression onto one-hot answers, cross-validated.

    Rows of one group (questions about one clip) stay in one fold, or the probe would recognise the clip instead of
    reading the answer. Each fold is answered by a probe learned on the others; its strength is the one with the least
    squared error on the fold after it when that one is left out as well. None where fewer than two answers occur or
    there are fewer groups than twice the folds. Raises `ValueError` for fewer than three folds.
    """
    if folds < 3:
        raise ValueError(f"folds is {folds}: one is held out and one chooses the strength, so take 3 or more")
    classes = sorted(set(answers))
    members = list(groups) if groups is not None else list(range(len(answers)))
    if len(classes) < 2 or len(set(members)) < 2 * folds:
        return None
    features_ND = features_ND.double()
    labels_N = torch.tensor([classes.index(answer) for answer in answers])
    fold_N = _assign(members, folds, seed)
    right_N = torch.zeros(len(answers), dtype=torch.bool)
    for fold in range(folds):
        held, inner = fold_N == fold, fold_N == (fold + 1) % folds
        scores_SNC = ridge_scores(features_ND, labels_N, learn=~(held | inner), score=inner, strengths=strengths)
        targets_NC = F.one_hot(labels_N[inner], scores_SNC.shape[-1])
        # Not by right answers: those of few rows are mostly tied, from a strong penalty to none.
        best = int((scores_SNC - targets_NC).square().mean((1, 2)).argmin())
        scores_SNC = ridge_scores(features_ND, labels_N, learn=~held, score=held, strengths=[strengths[best]])
        right_N[held] = scores_SNC[0].argmax(1) == labels_N[held]
    figure = accuracy(right_N.tolist())
    commonest = int(labels_N.bincount().max())
    return Decodability(
        n=figure.n,
        accuracy=figure.accuracy,
        low=figure.low,
        high=figure.high,
        chance=commonest / len(answers),
    )


def ridge_scores(
    features_ND: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    learn: torch.Tensor,
    score: torch.Tensor,
    strengths: Sequence[float],
) -> torch.Tensor:
    """Scores of every answer (S, rows to score, C) by a probe learned on the rows `learn`; both are bool (N,).

    Features are standardised on the rows to learn from; the intercept is not penalised. Closed form.
    """
    x_ND = features_ND[learn]
    mean_D, scale_D = x_ND.mean(0), x_ND.std(0, correction=0)
    # A feature that never changes says nothing, and must not be blown up where it does elsewhere.
    scale_D = torch.where(scale_D > 1e-6 * x_ND.abs().max(), scale_D, torch.inf)
    targets_NC = F.one_hot(labels_N[learn], int(labels_N.max()) + 1).to(x_ND.dtype)
    u_NR, s_R, v_RD = torch.linalg.svd((x_ND - mean_D) / scale_D, full_matrices=False)
    projected_RC = u_NR.T @ (targets_NC - targets_NC.mean(0))
    test_NR = (features_ND[score] - mean_D) / scale_D @ v_RD.T
    scores = []
    for strength in strengths:
        shrunk_R = s_R / (s_R.square() + strength * len(x_ND))
        scores.append(test_NR @ (shrunk_R[:, None] * projected_RC) + targets_NC.mean(0))
    return torch.stack(scores)


def _assign(members: Sequence[Hashable], folds: int, seed: int) -> torch.Tensor:
    """A fold for every row, int64 (N,): groups drawn at random, as many in each fold."""
    names = list(dict.fromkeys(members))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    fold_of = {names[at]: i % folds for i, at in enumerate(order)}
    return torch.tensor([fold_of[member] for member in members])
