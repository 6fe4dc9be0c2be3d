"""What a run leaves on disk, and what it takes of a machine's own memory.

`tests/platform/train/test_footprint.py` holds the sizes of checkpoints against real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from omni_platform.train.config import TrainConfig

GIB = 2**30


class Weights(Protocol):
    """The part of a `StepSize` that matters here."""

    @property
    def num_weights(self) -> int: ...
    @property
    def num_learning(self) -> int: ...
    @property
    def num_exported(self) -> int: ...
    @property
    def input_bytes(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on disk and in the memory of one machine."""

    checkpoint_bytes: float
    num_checkpoints: int
    """That lie in storage_path at the same time, the one being written among them."""
    export_bytes: float
    num_exports: int
    """Copies: the one being written, the one before it, and the registered one."""
    scratch_bytes: float
    """Below TMPDIR of one machine."""
    host_bytes: float
    """Of one machine, without Ray's object store."""

    def lines(self, gpus_per_node: int) -> list[str]:
        """As a person reads them."""

        def line(name: str, value: float, remark: str) -> str:
            return f"  {name:<20}{value / GIB:>8.1f}  {remark}"

        kept = self.num_checkpoints * self.checkpoint_bytes
        return [
            f"{'disk':<22}{'GiB':>8}",
            line("storage_path", kept, f"{self.num_checkpoints} checkpoints of {self.checkpoint_bytes / GIB:.1f}"),
            line("export", self.num_exports * self.export_bytes, f"{self.num_exports} x {self.export_bytes / GIB:.1f}"),
            line("TMPDIR of a machine", self.scratch_bytes, "checkpoints on their way to and from storage_path"),
            "",
            f"{'memory of a machine':<22}{'GiB':>8}",
            line("workers", self.host_bytes, f"at most {gpus_per_node} a machine; Ray's object store comes on top"),
        ]


def largest(found: Sequence[Footprint]) -> Footprint:
    """The most of each, over several numbers of workers: few divide less, many share one machine."""
    return Footprint(**{f.name: max(getattr(one, f.name) for one in found) for f in fields(Footprint)})


def footprint_of(config: TrainConfig, size: Weights, *, workers: int, gpus_per_node: int) -> Footprint:
    """What a run on so many workers takes of disks and of one machine."""
    value = 2 if config.bf16 else 4
    here, sharded = min(workers, gpus_per_node), config.engine == "deepspeed"
    # AdamW's two moments; DeepSpeed keeps its float32 copy of what learns beside them in any precision.
    states = size.num_learning * (12.0 if sharded else 8.0)
    # ZeRO-3 leaves the weights that learn to that copy, and divides the others.
    divided = sharded and config.zero_stage == 3
    whole = (size.num_weights - size.num_learning if divided else size.num_weights) * float(value)
    checkpoint = whole + states
    share = (whole / workers * here if divided else whole) + (states / workers * here if sharded else states)
    remote = "://" in (config.storage_path or config.output_dir)
    evaluated = config.eval_dataset_dir is not None
    # Worker 0 of every machine fetches the whole checkpoint to resume; an evaluation does so while the next is saved.
    scratch = max(share + (checkpoint if remote and evaluated else 0.0), checkpoint if remote else 0.0)
    loading = 0.0 if divided else size.num_weights * 4.0
    return Footprint(
        checkpoint_bytes=checkpoint,
        num_checkpoints=config.save_total_limit + 1 + evaluated,
        export_bytes=size.num_exported * float(value),
        num_exports=2 + (config.registered_model_name is not None),
        scratch_bytes=scratch,
        host_bytes=here * (loading + (config.prefetch_batches + 1) * size.input_bytes),
    )
