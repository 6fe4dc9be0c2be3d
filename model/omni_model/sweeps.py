"""Solve z = F(z) where slot k of F(z) depends on the slots before k alone: all slots in parallel, sweep by sweep.

After t sweeps the first t slots are exact, whatever the start (Jacobi iteration over a triangular system, as PCCoT,
arXiv 2506.18582, does over thoughts); K sweeps are the sequential result. Usually far fewer do.
"""

# B = rows, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


def settle(
    image_of: Callable[[torch.Tensor], torch.Tensor],
    start_BKD: torch.Tensor,
    *,
    sweeps: int,
    tolerance: float,
    carry: bool = True,
    backwards: bool = False,
    together: bool = False,
) -> torch.Tensor:
    """At most `sweeps` sweeps z <- F(z) from `start_BKD`; a row that stops moving keeps what it has.

    `tolerance` is the movement of a sweep relative to the row's norm that counts as standing still, 0 for never. Rows
    stop one by one, so that a row's result is that of the row alone. `together` lets the ranks of a process group run
    equally many sweeps, because ranks that gather weights must run equally many forwards. `backwards` solves a system
    whose slots depend on those after them. `carry`: see `_carried`.
    """
    value = start_BKD
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    open_B = torch.ones(len(value), dtype=torch.bool, device=value.device)
    for _ in range(sweeps):
        image = image_of(value)
        new = _carried(value, image, before, backwards=backwards) if carry and before is not None else image
        before = (value, image)
        new = torch.where(open_B[:, None, None], new, value)
        if tolerance > 0:
            moved_B, size_B = (x.flatten(1).float().norm(dim=1) for x in (new - value, new))
            open_B = open_B & (moved_B > tolerance * size_B)
        value = new
        if tolerance > 0 and not _anybody(open_B, together=together):
            break
    return value


def _carried(
    value: torch.Tensor, image: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor], *, backwards: bool
) -> torch.Tensor:
    """The sweep's result, corrected for how far each slot's neighbour has just moved.

    A change of one slot passes into the next one nearly unchanged, times a factor a between 0 and 1, because layers add
    to their input. Plain sweeps hand such a change on by one slot a sweep; here z_k <- F(z)_k + a (z_k-1 new - old) for
    all k at once. The factor is fitted to the two latest sweeps, row by row. Exact slots stay exact.
    """
    old_value, old_image = before
    step, answer, gap = value - old_value, image - old_image, image - value
    if backwards:
        step, answer, gap = step.flip(1), answer.flip(1), gap.flip(1)
    fed, got = step[:, :-1].float().flatten(1), answer[:, 1:].float().flatten(1)
    factor_B = ((fed * got).sum(1) / fed.square().sum(1).clamp(min=1e-30)).clamp(0.0, 1.0)
    steps = torch.arange(gap.shape[1], device=gap.device)
    lag_KK = steps[:, None] - steps
    powers_BKK = torch.where(lag_KK >= 0, factor_B[:, None, None] ** lag_KK.clamp(min=0), 0.0)
    moved = (powers_BKK @ gap.float()).to(value.dtype)
    return value + (moved.flip(1) if backwards else moved)


def _anybody(open_B: torch.Tensor, *, together: bool) -> bool:
    moving = open_B.any()
    if together and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        flag = moving.float()
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)
    return bool(moving)
