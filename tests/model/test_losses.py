"""Every loss by hand on small numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from omni_model.losses import (
    contrastive_loss,
    cosine_loss,
    learned_positions,
    regression_loss,
    sync_loss,
    text_loss,
)
from omni_model.sequence import IGNORE


def test_text_loss_is_the_mean_over_learned_tokens():
    labels = torch.tensor([[IGNORE, 1, IGNORE, 0], [2, IGNORE, IGNORE, 2]])
    learned, wanted = learned_positions(labels)
    # A label is predicted one position before it stands; nothing predicts the first one.
    assert learned.tolist() == [[True, False, True], [False, False, True]]
    assert wanted.tolist() == [1, 0, 2]
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    expected = -(math.log(0.25) + math.log(0.1) + math.log(0.6)) / 3
    assert float(text_loss(probabilities.log(), wanted).mean) == pytest.approx(expected, rel=1e-5)


def test_text_loss_of_no_token_is_zero_with_gradient():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = text_loss(logits, torch.zeros(0, dtype=torch.long)).mean
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None


def _two_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row 0 has two phases, row 1 has one; K = 2, D = 3. Whatever stands in the absent phase must not count."""
    latents = torch.zeros(2, 2, 2, 3)
    anchors = torch.zeros(2, 2, 2, 3)
    latents[0, 0, 0] = torch.tensor([1.0, 2.0, 2.0])  # squared distance 9
    latents[0, 1, 1] = torch.tensor([0.0, 0.0, 3.0])  # 9
    anchors[1, 0, 0] = torch.tensor([2.0, 0.0, 0.0])  # 4
    latents[1, 1] = 1e6
    anchors[1, 1] = -1e6
    return latents, anchors, torch.tensor([[True, True], [True, False]])


def test_regression_means_over_present_phases_and_slots():
    latents, anchors, present = _two_rows()
    total = regression_loss(latents, anchors, present, reduction="sum").mean
    assert float(total) == pytest.approx((9 + 0 + 0 + 9 + 4 + 0) / 6)
    audio_only = regression_loss(latents, anchors, present, reduction="sum", slots=slice(1, None)).mean
    assert float(audio_only) == pytest.approx((0 + 9 + 0) / 3)


def test_the_two_reductions_differ_by_the_width():
    """The paper's Eq. 5 sums over the width and its code takes the mean (invariant 15)."""
    generator = torch.Generator().manual_seed(0)
    latents, anchors = torch.randn(2, 3, 2, 4, 17, generator=generator)
    present = torch.tensor([[True, True], [False, True], [True, False]])
    total = regression_loss(latents, anchors, present, reduction="sum").mean
    mean = regression_loss(latents, anchors, present, reduction="mean").mean
    torch.testing.assert_close(total, 17 * mean)


def test_cosine_loss_by_hand():
    latents, anchors = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    latents[0, 0] = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    anchors[0, 0] = torch.tensor([[5.0, 0.0], [0.0, 3.0]])
    present = torch.tensor([[True, False]])
    expected = ((1 - 1) + (1 - math.sqrt(0.5))) / 2
    assert float(cosine_loss(latents, anchors, present).mean) == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_by_hand():
    latents = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])
    anchors = torch.tensor([[[[4.0, 0.0]]], [[[0.0, 4.0]]]])
    # Centred anchors are (2, -2) and (-2, 2), at 45 degrees to the latents.
    near, far = math.sqrt(0.5) / 0.5, -math.sqrt(0.5) / 0.5
    expected = -math.log(math.exp(near) / (math.exp(near) + math.exp(far)))
    present = torch.ones(2, 1, dtype=torch.bool)
    assert float(contrastive_loss(latents, anchors, present, temperature=0.5).mean) == pytest.approx(expected, rel=1e-5)


def test_the_mean_of_all_anchors_scores_chance_in_the_contrastive_loss():
    anchors = torch.randn(6, 1, 2, 8, generator=torch.Generator().manual_seed(0))
    present = torch.ones(6, 1, dtype=torch.bool)
    average = anchors.mean(0, keepdim=True).expand_as(anchors)
    assert contrastive_loss(average, anchors, present, temperature=0.1).mean > math.log(6)
    centred = anchors - anchors.mean(0)
    assert contrastive_loss(centred, anchors, present, temperature=0.1).mean < 0.1


@pytest.mark.parametrize("distinct", [3, 40])
def test_the_same_moment_twice_is_no_negative(distinct):
    """Also in large batches of large anchors, where fast distances are inexact."""
    generator = torch.Generator().manual_seed(0)
    anchors = 30 * torch.randn(distinct, 1, 1, 96, generator=generator)
    latents = torch.randn(distinct, 1, 1, 96, generator=generator)
    rounding = 1 + 1e-5 * torch.randn(anchors.shape, generator=generator)
    both = torch.cat([latents, latents]), torch.cat([anchors, anchors * rounding])
    loss = contrastive_loss(*both, torch.ones(2 * distinct, 1, dtype=torch.bool), temperature=0.1).mean
    centred = F.normalize(anchors[:, 0, 0] - anchors[:, 0, 0].mean(0), dim=-1)
    scores = (F.normalize(latents[:, 0, 0], dim=-1) @ centred.T / 0.1).exp()
    own = scores.diagonal()
    # Every other moment stands there twice; the own one is counted once.
    expected = -(own / (own + 2 * (scores.sum(1) - own))).log().mean()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)


def test_a_moment_that_differs_by_a_hundredth_is_a_negative():
    anchors = torch.randn(1, 1, 1, 96, generator=torch.Generator().manual_seed(0))
    pair = torch.cat([anchors, 1.01 * anchors])
    loss = contrastive_loss(pair, pair, torch.ones(2, 1, dtype=torch.bool), temperature=0.1).mean
    assert loss > 1
    same = contrastive_loss(
        pair, torch.cat([anchors, anchors]), torch.ones(2, 1, dtype=torch.bool), temperature=0.1
    ).mean
    assert float(same) == 0.0


def test_other_segments_of_the_clips_are_negatives_too():
    """By hand: candidates (4, 0), (0, 4) and (-4, -4) have the mean 0; the third is nobody's own."""
    latents = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])
    anchors = torch.tensor([[[[4.0, 0.0]]], [[[0.0, 4.0]]]])
    others = torch.tensor([[[-4.0, -4.0]]])
    present = torch.ones(2, 1, dtype=torch.bool)
    scores = [1.0, 0.0, -math.sqrt(0.5)]
    expected = -math.log(math.exp(1.0 / 0.5) / sum(math.exp(s / 0.5) for s in scores))
    loss = contrastive_loss(latents, anchors, present, temperature=0.5, others_MKD=others).mean
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_one_phase_has_something_to_be_told_from_where_its_clip_has_other_segments():
    generator = torch.Generator().manual_seed(0)
    anchors, others = torch.randn(1, 1, 1, 8, generator=generator), torch.randn(5, 1, 8, generator=generator)
    present = torch.ones(1, 1, dtype=torch.bool)
    assert float(contrastive_loss(others[:1, None], anchors, present, temperature=0.1).mean) == 0.0
    wrong = contrastive_loss(others[:1, None], anchors, present, temperature=0.1, others_MKD=others).mean
    assert wrong > math.log(6)
    # The own segment among the others, encoded elsewhere, is no negative.
    again = contrastive_loss(anchors, anchors, present, temperature=0.1, others_MKD=anchors[0] * (1 + 1e-6)).mean
    assert float(again) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["sum", "mean", "cosine", "contrastive"])
def test_without_any_phase_the_latent_losses_are_zero_with_gradient(name):
    latents = torch.zeros(2, 1, 3, 4, requires_grad=True)
    anchors, present = torch.ones(2, 1, 3, 4), torch.zeros(2, 1, dtype=torch.bool)
    if name == "cosine":
        loss = cosine_loss(latents, anchors, present).mean
    elif name == "contrastive":
        loss = contrastive_loss(latents, anchors, present, temperature=0.1).mean
    else:
        loss = regression_loss(latents, anchors, present, reduction=name).mean
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert latents.grad is not None
    assert not latents.grad.any()


def test_targets_receive_no_gradient():
    latents = torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    anchors = torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    present = torch.ones(3, 1, dtype=torch.bool)
    losses = [
        regression_loss(latents, anchors, present, reduction="sum").mean,
        cosine_loss(latents, anchors, present).mean,
        contrastive_loss(latents, anchors, present, temperature=0.1).mean,
    ]
    sum(losses).backward()  # type: ignore[union-attr]
    assert latents.grad is not None
    assert anchors.grad is None


def test_sync_loss_by_hand():
    visual = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    audio = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    scale = 2.0
    c = math.sqrt(0.5)
    scores = [[scale * c, 0.0], [scale * c, scale]]  # rows: visual moments, columns: audio moments

    def row_loss(row: list[float], own: int) -> float:
        return -math.log(math.exp(row[own]) / sum(math.exp(x) for x in row))

    by_visual = [row_loss(scores[t], t) for t in range(2)]
    by_audio = [row_loss([scores[0][t], scores[1][t]], t) for t in range(2)]
    expected = (sum(by_visual) + sum(by_audio)) / 4
    assert float(sync_loss(visual[None], audio[None], torch.tensor(scale))) == pytest.approx(expected, rel=1e-5)
    swapped = sync_loss(torch.stack([audio] * 3), torch.stack([visual] * 3), torch.tensor(scale))
    assert float(swapped) == pytest.approx(expected, rel=1e-5)
