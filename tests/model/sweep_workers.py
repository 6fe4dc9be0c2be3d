"""One of two workers that sweep over systems of their own: `python sweep_workers.py rank file`, prints two counts."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from omni_model.sweeps import settle

SLOTS = 12


def sweeps_of(rank: int, *, together: bool) -> int:
    """How many sweeps a chain takes that hands on little (worker 0) or much (worker 1)."""
    count = 0

    def image(z: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return torch.tanh(1 + (0.05, 0.9)[rank] * torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) ** 2)

    settle(image, torch.zeros(1, SLOTS, 4), sweeps=50, tolerance=1e-2, carry=False, together=together)
    return count


def main(rank: int, meeting: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    print(sweeps_of(rank, together=False), sweeps_of(rank, together=True))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
