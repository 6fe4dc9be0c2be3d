"""Sizes of checkpoints told beforehand, against those that the engines really write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist

from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import make_engine
from omni_platform.train.footprint import footprint_of

WIDTH = 1024


@dataclass(frozen=True, kw_only=True)
class Size:
    num_weights: int
    num_learning: int
    num_exported: int
    input_bytes: float = 0.0


class Net(torch.nn.Module):
    """A million weights that learn and two that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.learns = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.frozen = torch.nn.Linear(WIDTH, 2 * WIDTH, bias=False).requires_grad_(False)

    def forward(self, batch: Any, divisors: Any) -> dict[str, torch.Tensor]:
        x = torch.ones(1, WIDTH, dtype=self.learns.weight.dtype)
        return {"loss": self.frozen(self.learns(x)).float().square().mean()}


class NetTask:
    def __init__(self) -> None:
        self.module = Net()

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [self.module.learns.weight], "weight_decay": weight_decay}]


SIZE = Size(num_weights=3 * WIDTH**2, num_learning=WIDTH**2, num_exported=3 * WIDTH**2)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"run_name": "r", "dataset_dir": "d", "output_dir": "o", **changes})


@pytest.fixture(scope="module")
def one_worker() -> Iterator[None]:
    """One group for all engines here: DeepSpeed keeps the first that it finds."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_worker")
@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"engine": "torch"}, 3 * 4 + 8),
        ({"zero_stage": 1}, 3 * 4 + 12),
        ({"zero_stage": 2}, 3 * 4 + 12),
        ({"zero_stage": 2, "bf16": True}, 3 * 2 + 12),
        ({"zero_stage": 3}, 2 * 4 + 12),
        ({"zero_stage": 3, "bf16": True}, 2 * 2 + 12),
    ],
)
def test_a_checkpoint_is_as_large_as_it_was_said(changes, values, tmp_path):
    run = config(**changes)
    engine = make_engine(run, NetTask(), torch.device("cpu"))  # type: ignore[arg-type]
    engine.backward(engine.forward(None, {})["loss"])
    engine.step(1e-3)
    engine.save(tmp_path / "engine")
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    told = footprint_of(run, SIZE, workers=1, gpus_per_node=8).checkpoint_bytes
    assert told == values * WIDTH**2
    assert written == pytest.approx(told, rel=0.01)


def test_the_seven_b_preset_in_exact_numbers():
    """9 B weights of which 8 B learn, in bf16 with ZeRO-2, on 4 and on 16 GPUs of machines with 8."""
    size = Size(num_weights=9_000_000_000, num_learning=8_000_000_000, num_exported=9_000_000_000, input_bytes=1e9)
    run = config(
        bf16=True, num_workers=(4, 16), gradient_accumulation_steps=45045, save_total_limit=2, registered_model_name="m"
    )
    few, many = (footprint_of(run, size, workers=workers, gpus_per_node=8) for workers in (4, 16))
    assert few.checkpoint_bytes == many.checkpoint_bytes == 18e9 + 96e9
    assert few.num_checkpoints == 3 and few.export_bytes == 18e9 and few.num_exports == 3
    # Worker 0 writes the weights; four of four workers' states lie on one machine, or eight of sixteen.
    assert (few.scratch_bytes, many.scratch_bytes) == (18e9 + 96e9, 18e9 + 48e9)
    # Each worker reads float32 weights on the host, and has two batches ahead of the one it computes.
    assert (few.host_bytes, many.host_bytes) == (4 * 39e9, 8 * 39e9)


def test_what_makes_the_footprint_larger_or_smaller():
    remote = config(storage_path="s3://bucket/runs", eval_dataset_dir="e", zero_stage=3, num_workers=2)
    found = footprint_of(remote, SIZE, workers=2, gpus_per_node=1)
    million = WIDTH**2
    assert found.checkpoint_bytes == 20 * million
    assert found.num_checkpoints == 4  # the best one stays beside them
    assert found.num_exports == 2
    # Half of it is on its way there, and the whole of it comes back for an evaluation.
    assert found.scratch_bytes == 10 * million + 20 * million
    assert found.host_bytes == 0.0  # weights are divided while they are read
    local = footprint_of(config(num_workers=2), SIZE, workers=2, gpus_per_node=8)
    assert local.scratch_bytes == 24 * million
    assert local.lines(8)[:4] == [
        "disk                       GiB",
        "  storage_path             0.1  3 checkpoints of 0.0",
        "  export                   0.0  2 x 0.0",
        "  TMPDIR of a machine      0.0  checkpoints on their way to and from storage_path",
    ]
