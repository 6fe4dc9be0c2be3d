"""Measures of vectors against what can be said of them by hand or counted slowly."""

from __future__ import annotations

import math

import pytest
import torch

from omni_model.geometry import effective_rank, mean_cosine, norm_ratio, retrieval_top1


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_norm_ratio_is_of_root_mean_squares():
    latents, features = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, -1.0]])
    assert norm_ratio(latents, features) == pytest.approx(2.5)  # sqrt(25 / 4) over 1, not the mean norm 2.5 / sqrt(2)


def test_effective_rank_counts_directions():
    axes = torch.eye(8)[:4]
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(4.0)
    offset = 100.0 * torch.ones(8)
    assert effective_rank(torch.cat([axes, -axes]) + offset) == pytest.approx(4.0, abs=1e-3)  # centred
    assert effective_rank(torch.arange(5.0)[:, None] * torch.ones(1, 8)) == pytest.approx(1.0)
    assert effective_rank(_random(1, 8).expand(6, 8)) == 0.0
    # Two directions of unequal size: singular values 3 : 1.
    uneven = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(uneven) == pytest.approx(math.exp(entropy))


def test_mean_cosine_is_over_all_pairs():
    vectors = _random(7, 5) * torch.tensor([[1.0], [9.0], [0.1], [1.0], [2.0], [3.0], [4.0]])
    pairs = [
        float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) for i in range(7) for j in range(7) if i != j
    ]
    assert mean_cosine(vectors) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert mean_cosine(vectors[:1]) is None


def test_retrieval_finds_the_moment_under_what_all_moments_share():
    moments = _random(6, 3, 16)
    shared = 50.0 * _random(3, 16, seed=1)  # far larger than what tells moments apart
    for own in range(6):
        latents = moments[own] + 0.1 * _random(3, 16, seed=2)
        common = shared + moments.mean(0)
        assert retrieval_top1(latents + shared, moments + shared, own, common_KD=common) == 1.0
        assert retrieval_top1(latents + shared, moments + shared, (own + 1) % 6, common_KD=common) == 0.0
        # What InfoNCE learns has no share in the common part, or one of its own.
        assert retrieval_top1(latents - moments.mean(0), moments + shared, own) == 1.0
        elsewhere = 50.0 * _random(3, 16, seed=3)
        assert retrieval_top1(0.1 * latents + elsewhere, moments + shared, own, common_KD=elsewhere) == 1.0


def test_retrieval_takes_the_mean_over_slots_slot_by_slot():
    moments = torch.stack([torch.eye(4)[:2], torch.eye(4)[2:]])  # two moments with two slots each
    assert retrieval_top1(moments[0], moments, 0) == 1.0
    crossed = moments[0].flip(0)  # the right vectors in the wrong slots: no nearer to one than to the other
    assert retrieval_top1(crossed, moments, 0) == pytest.approx(0.5)
    mixed = torch.stack([moments[1, 0], 0.9 * moments[1, 1] + moments[0, 1]])
    assert retrieval_top1(mixed, moments, 1) == 1.0


def test_ties_share_the_point_so_that_chance_is_chance():
    silence = torch.zeros(5, 2, 4)
    assert [retrieval_top1(_random(2, 4), silence, own) for own in range(5)] == pytest.approx([0.2] * 5)
    # The same vector for every clip cannot do better than chance over all moments.
    moments, fixed = _random(8, 2, 16), _random(2, 16, seed=4)
    assert sum(retrieval_top1(fixed, moments, own) for own in range(8)) / 8 == pytest.approx(1 / 8)
