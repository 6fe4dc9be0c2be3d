"""What finding the place costs when a run goes on: at step 10, and at step 10 million.

A resumed run makes its plan, jumps to its step and waits for the first batch; this is timed for the same rows and two
steps, in turns. The contrast is the usual way, iterating over all batches before the place: what it costs per batch
passed over is measured at small numbers. Beside it: how long the newest checkpoint takes to be found and checked when
it lies alone and when it lies among many.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from omni_platform.train.checkpoint import Storage, commit, newest_sound
from omni_platform.train.config import TrainConfig
from omni_platform.train.feed import Feed
from omni_platform.train.plan import Plan

TURNS = 9
EARLY, LATE = 10, 10_000_000
SKIPPED = 2_000
MANY_CHECKPOINTS = 64


def main() -> None:
    torch.set_num_threads(1)
    settings = {
        "small_epoch": (Rows(5_000), {}),
        "big_epoch": (Rows(200_000), {}),
        "big_epoch_by_length": (Rows(200_000), {"group_by_length": True}),
    }
    figures: dict[str, float] = {}
    for name, (rows, options) in settings.items():
        config = _config(**options)
        seconds = _alternate(
            {
                "early": lambda c=config, r=rows: _first_batch(c, r, EARLY),
                "late": lambda c=config, r=rows: _first_batch(c, r, LATE),
            }
        )
        figures[f"resume_late_vs_early_{name}"] = seconds["late"] / seconds["early"]
        print(f"{name}: {len(rows)} rows; late against early {figures[f'resume_late_vs_early_{name}']:.3f}")
    # The name without a suffix is that of the worst case.
    figures["resume_late_vs_early"] = max(figures.values())
    figures |= _against_skipping(settings["small_epoch"][0])
    figures |= _among_many_checkpoints()
    print(json.dumps({"bench": "resume", "figures": {name: round(value, 4) for name, value in figures.items()}}))


class Rows:
    """Rows of a few kilobytes that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.ids = tuple(f"sample-{number:08d}" for number in range(count))
        self.lengths = tuple(np.random.default_rng(0).integers(200, 2000, count).tolist())

    def __len__(self) -> int:
        return len(self.ids)

    def outline(self, index: int) -> int:
        return index

    def row(self, index: int) -> torch.Tensor:
        return torch.full((1024,), float(index))


def _config(**options: Any) -> TrainConfig:
    return TrainConfig(
        run_name="resume", dataset_dir="none", output_dir="none", per_device_train_batch_size=2,
        gradient_accumulation_steps=2, num_workers=2, max_steps=LATE + 100, **options,
    )  # fmt: skip


def _first_batch(config: TrainConfig, rows: Rows, step: int) -> None:
    """All that depends on the step between a checkpoint and the first forward pass."""
    plan = Plan.make(config, rows, world_size=2)
    with Feed(rows, plan.batches(0, first_step=step), torch.stack, depth=config.prefetch_batches) as feed:
        next(feed)


def _skip_to(config: TrainConfig, rows: Rows, step: int) -> None:
    """The usual way: from the beginning, read and throw away until the place is reached."""
    plan = Plan.make(config, rows, world_size=2)
    with Feed(rows, plan.batches(0, first_step=0), torch.stack, depth=config.prefetch_batches) as feed:
        for _ in range(step * config.gradient_accumulation_steps + 1):
            next(feed)


def _against_skipping(rows: Rows) -> dict[str, float]:
    config = _config()
    seconds = _alternate(
        {
            "jump": lambda: _first_batch(config, rows, SKIPPED),
            "skip": lambda: _skip_to(config, rows, SKIPPED),
        }
    )
    ratio = seconds["skip"] / seconds["jump"]
    print(f"to step {SKIPPED} by reading all batches before it, against jumping: {ratio:.1f}")
    return {f"skipping_{SKIPPED}_steps_vs_jumping": ratio}


def _among_many_checkpoints() -> dict[str, float]:
    """Finding and checking the newest checkpoint, alone and among many of the same size."""
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        for name, count in (("one", 1), ("many", MANY_CHECKPOINTS)):
            for step in range(1, count + 1):
                aside = Path(folder) / f"{name}-{step}"
                aside.mkdir()
                (aside / "weights.pt").write_bytes(np.random.default_rng(step).bytes(4 << 20))
                commit(Storage.at(folder, name), step, aside)
        seconds = _alternate(
            {
                name: lambda n=name: newest_sound(Storage.at(folder, n), Path(folder) / "scratch", leads_node=True)
                for name in ("one", "many")
            }
        )
        dist.destroy_process_group()
    ratio = seconds["many"] / seconds["one"]
    print(f"the newest of {MANY_CHECKPOINTS} checkpoints, against one that lies alone: {ratio:.2f}")
    return {f"newest_of_{MANY_CHECKPOINTS}_checkpoints_vs_one": ratio}


def _alternate(contestants: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Least CPU seconds of each, the contestants taking turns after one warm-up.

    All of it is computing (hashes, orders, copies), so CPU time is waiting time, but for what else the machine does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(TURNS + 1):
        for name, run in contestants.items():
            started_s = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - started_s)
    return {name: min(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
