"""Norm-weighted pooling equals its formula, bin by bin."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from omni_model.pooling import fine_pool, norm_weighted_pool, pool_fine


def _slowly(x: torch.Tensor, length: int) -> torch.Tensor:
    rows = []
    for j in range(length):
        inside = range(math.floor(j * len(x) / length), math.ceil((j + 1) * len(x) / length))
        energies = [float(x[n].square().sum()) + 1e-6 for n in inside]
        rows.append(sum(e * x[n] for e, n in zip(energies, inside, strict=True)) / sum(energies))
    return torch.stack(rows)


@pytest.mark.parametrize(("count", "length"), [(125, 8), (20, 8), (9, 8), (7, 3), (4, 1), (40, 32), (64, 32)])
def test_bins_are_weighted_by_squared_norm(count, length):
    """Where the length does not divide the count, neighbouring bins share a feature."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    x = x * torch.logspace(-2, 1, count, dtype=torch.float64)[:, None]
    torch.testing.assert_close(norm_weighted_pool(x, length), _slowly(x, length).float(), atol=1e-5, rtol=1e-5)


def test_a_loud_feature_speaks_for_its_bin():
    x = torch.tensor([[0.1, 0.0], [0.0, 10.0], [0.1, 0.0], [0.1, 0.0]])
    pooled = norm_weighted_pool(x, 2)
    torch.testing.assert_close(pooled[0], torch.tensor([0.0, 10.0]), atol=1e-2, rtol=0)
    torch.testing.assert_close(pooled[1], torch.tensor([0.1, 0.0]))


def test_silence_is_zero_and_not_nan():
    assert not norm_weighted_pool(torch.zeros(5, 3), 2).any()
    assert torch.equal(norm_weighted_pool(torch.zeros(0, 3), 4), torch.zeros(4, 3))


@pytest.mark.parametrize(("count", "length"), [(4, 4), (1, 5), (3, 8)])
def test_few_features_are_interpolated(count, length):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    expected = []
    for j in range(length):
        # align_corners=False: the centre of output j in units of inputs, clamped to the outer centres.
        place = min(max((j + 0.5) * count / length - 0.5, 0.0), count - 1.0)
        low = min(math.floor(place), count - 1)
        high = min(low + 1, count - 1)
        expected.append(x[low] + (place - low) * (x[high] - x[low]))
    torch.testing.assert_close(norm_weighted_pool(x, length), torch.stack(expected))
    if count == length:
        assert torch.equal(norm_weighted_pool(x, length), x)


def test_half_precision_is_pooled_in_float32():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).bfloat16() * 100
    pooled = norm_weighted_pool(x, 7)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, _slowly(x.float(), 7), atol=1e-4, rtol=1e-5)


def test_gradient_reaches_every_feature():
    x = torch.randn(11, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    F.mse_loss(norm_weighted_pool(x, 3), torch.zeros(3, 4)).backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("count", [0, 3, 11])
def test_a_stack_is_pooled_as_its_members(count):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, count, 4, generator=generator)
    pooled = norm_weighted_pool(x, 5)
    assert pooled.shape == (2, 3, 5, 4)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(pooled[i, j], norm_weighted_pool(x[i, j], 5))


@pytest.mark.parametrize("count", [24, 25, 36, 37, 100, 119, 1000])
def test_fine_features_pool_to_what_all_features_pool_to(count):
    """Whether the bins divide the features or share some with their neighbours."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    x = x * torch.logspace(-2, 1, count)[:, None]
    fine = fine_pool(x, 12)
    assert fine.num_features == count
    assert len(fine.values) == {24: 12, 36: 12, 100: 20, 1000: 20}.get(count, 23)
    for length in (1, 2, 3, 4, 6, 12):
        torch.testing.assert_close(pool_fine(fine, length), norm_weighted_pool(x, length), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pool_fine(fine, length), _slowly(x, length), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="more than 23 features are stored in 12 bins, which give 1, 2, 3, 4, 6, 12"):
        pool_fine(fine, 5)


@pytest.mark.parametrize("count", [0, 1, 5, 12, 23])
@pytest.mark.parametrize("length", [0, 1, 5, 7, 12, 32])
def test_few_features_are_kept_as_they_are_for_any_number_of_slots(count, length):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    assert torch.equal(pool_fine(fine_pool(x, 12), length), norm_weighted_pool(x, length))


def test_what_half_precision_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="not finite as float16"):
        fine_pool(torch.full((3, 2), 1e5), 4, dtype="float16")
    assert fine_pool(torch.full((3, 2), 1e4), 4, dtype="float16").values.dtype == "float16"
