"""Sweeps over a triangular system against its solution slot by slot, and the gradient of a chain against autograd."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from omni_model.adjoint import with_chain_gradient
from omni_model.sweeps import settle

ROWS, SLOTS, WIDTH = 3, 6, 4


@pytest.fixture
def weights() -> torch.Tensor:
    """Slot k takes from slot j by (K, K, D, D), strictly earlier ones alone, in one chain with much in common."""
    torch.manual_seed(0)
    lag_KK = torch.arange(SLOTS)[:, None] - torch.arange(SLOTS)
    spread = torch.where(lag_KK > 0, 0.4 / lag_KK.clamp(min=1) ** 2, 0.0)
    return spread[:, :, None, None] * (torch.eye(WIDTH) + 0.3 * torch.randn(SLOTS, SLOTS, WIDTH, WIDTH))


def _image(weights: torch.Tensor, constant: torch.Tensor, z_BKD: torch.Tensor) -> torch.Tensor:
    return torch.tanh(constant + torch.einsum("kjde,bje->bkd", weights, z_BKD))


def _chain(weights: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """One slot after the other, with autograd through all of them."""
    slots: list[torch.Tensor] = []
    for k in range(SLOTS):
        before = sum((slots[j] @ weights[k, j].T for j in range(k)), torch.zeros(()))
        slots.append(torch.tanh(constant[:, k] + before))
    return torch.stack(slots, 1)


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_after_t_sweeps_t_slots_are_exact(weights, carry, backwards):
    constant = torch.randn(ROWS, SLOTS, WIDTH)
    exact = _chain(weights, constant)
    turn = (lambda x: x.flip(1)) if backwards else (lambda x: x)
    image = lambda z: turn(_image(weights, constant, turn(z)))  # noqa: E731
    for sweeps in range(SLOTS + 1):
        start = 3 * torch.ones(ROWS, SLOTS, WIDTH)
        found = turn(settle(image, start, sweeps=sweeps, tolerance=0.0, carry=carry, backwards=backwards))
        torch.testing.assert_close(found[:, :sweeps], exact[:, :sweeps], atol=1e-6, rtol=0)
        if sweeps < SLOTS:
            assert (found[:, sweeps:] - exact[:, sweeps:]).abs().max() > 1e-4


def test_carrying_solves_a_chain_that_hands_on_nearly_everything_in_few_sweeps():
    """z_k = 0.9 z_k-1 + c_k: plain sweeps need one for every slot, the fitted factor makes it four."""
    slots = 40
    constant = torch.randn(2, slots, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.stack([sum(0.9 ** (k - j) * constant[:, j] for j in range(k + 1)) for k in range(slots)], 1)

    def image(z: torch.Tensor) -> torch.Tensor:
        return constant + 0.9 * torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)

    errors = {}
    for carry in (True, False):
        found = settle(image, torch.zeros_like(constant), sweeps=4, tolerance=0.0, carry=carry)
        errors[carry] = float((found - exact).norm() / exact.norm())
    assert errors[True] < 1e-5
    assert errors[False] > 0.5


def test_a_row_that_stands_still_keeps_what_it_has():
    """One row hands on little from slot to slot, the other much and goes on for longer."""
    share_B = torch.tensor([0.05, 0.9], dtype=torch.float64)

    def image(share_B: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(1 + share_B[:, None, None] * torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) ** 2)

    start, options = torch.zeros(2, 12, WIDTH, dtype=torch.float64), {"sweeps": 50, "tolerance": 1e-2}
    for carry in (True, False):
        together = settle(partial(image, share_B), start, carry=carry, **options)
        for row in range(2):
            alone = settle(partial(image, share_B[row : row + 1]), start[row : row + 1], carry=carry, **options)
            assert torch.equal(together[row], alone[0])
        # One more sweep would have changed it.
        assert (image(share_B, together) - together)[0].abs().max() > 1e-9


@pytest.mark.parametrize("keep_graph", [True, False])
def test_the_gradient_is_that_of_the_chain(weights, keep_graph):
    """Of weights and of what enters every slot, against autograd through one slot after the other."""
    weights.requires_grad_()
    constant = torch.randn(ROWS, SLOTS, WIDTH, requires_grad=True)
    aim = torch.randn(ROWS, SLOTS, WIDTH)
    wanted = torch.autograd.grad((_chain(weights, constant) * aim).sum(), (weights, constant))
    with torch.no_grad():
        latents = _chain(weights, constant)
    live = with_chain_gradient(partial(_image, weights, constant), latents, keep_graph=keep_graph)
    torch.testing.assert_close(live, latents)
    found = torch.autograd.grad((live * aim).sum(), (weights, constant))
    # Entries of weights from later slots exist in the array alone.
    earlier = torch.ones(SLOTS, SLOTS).tril(-1)[:, :, None, None]
    torch.testing.assert_close(found[0] * earlier, wanted[0] * earlier, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-4, rtol=0)
    once = torch.autograd.grad((_image(weights, constant, latents) * aim).sum(), constant)[0]
    assert (once - wanted[1]).abs().max() > 1e-2


def test_ranks_that_gather_weights_sweep_equally_often(tmp_path):
    """Worker 0 would be content after two sweeps, worker 1 needs more."""
    script, meeting = Path(__file__).parent / "sweep_workers.py", tmp_path / "meeting"
    workers = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(meeting)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    alone, together = zip(*(map(int, worker.communicate(timeout=120)[0].split()) for worker in workers), strict=True)
    assert alone[0] < alone[1]
    assert together == (alone[1], alone[1])
