"""Which rows each step takes: a pure function of the seed, the row ids and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from omni_platform.data.batches import epoch_order, step_indices
from omni_platform.train.config import TrainConfig
from omni_platform.train.schedule import total_steps
from omni_platform.train.task import Rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a run and the rows of its every step."""

    config: TrainConfig
    ids: tuple[str, ...]
    world_size: int
    steps_per_epoch: int
    total_steps: int
    rows_fingerprint: str

    @classmethod
    def make(cls, config: TrainConfig, rows: Rows, *, world_size: int) -> Plan:
        """ValueError where there are fewer rows than one step needs."""
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size
        if len(rows) < per_step:
            raise ValueError(
                f"{config.dataset_dir} has {len(rows)} rows and one step takes {per_step}; "
                "lower per_device_train_batch_size, gradient_accumulation_steps or num_workers"
            )
        ids = tuple(rows.ids)
        return cls(
            config=config,
            ids=ids,
            world_size=world_size,
            steps_per_epoch=len(ids) // per_step,
            total_steps=total_steps(config, len(ids) // per_step),
            rows_fingerprint=hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
        )

    def batches(self, rank: int, *, first_step: int) -> Iterator[list[int]]:
        """Row numbers of one worker's micro-batches from a step on; jumping there costs one epoch's order."""
        order = np.empty(0, np.int64)
        for step in range(first_step, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if within == 0 or step == first_step:
                order = epoch_order(self.ids, self.config.seed, epoch)
            yield from step_indices(
                order,
                within,
                rank=rank,
                world_size=self.world_size,
                per_device_batch=self.config.per_device_train_batch_size,
                accumulation=self.config.gradient_accumulation_steps,
            )
