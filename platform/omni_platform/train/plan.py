"""Which rows each step takes: a pure function of the seed, the row ids (and lengths) and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omni_platform.data.batches import epoch_order, step_indices
from omni_platform.train.config import TrainConfig
from omni_platform.train.schedule import total_steps
from omni_platform.train.task import Rows

_STEPS_PER_STRETCH = 50
"""Rows are sorted by length within stretches of so many steps: long enough for like lengths, short against an epoch."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a run and the rows of its every step."""

    config: TrainConfig
    ids: tuple[str, ...]
    lengths: np.ndarray | None
    """int64 (rows,): positions of each row, where rows are grouped by length."""
    world_size: int
    steps_per_epoch: int
    total_steps: int
    rows_fingerprint: str

    @classmethod
    def make(cls, config: TrainConfig, rows: Rows, *, world_size: int) -> Plan:
        """ValueError where there are fewer rows than one step needs, or lengths are wanted and unknown."""
        per_step = config.per_device_train_batch_size * config.micro_batches_per_step
        if len(rows) < per_step:
            raise ValueError(
                f"{config.dataset_dir} has {len(rows)} rows and one step takes {per_step}; "
                "lower per_device_train_batch_size, gradient_accumulation_steps or num_workers"
            )
        config.accumulation(world_size)  # refuses a number of workers that cannot share a step
        ids = tuple(rows.ids)
        lengths = _lengths(config, rows)
        seen = "\n".join(ids) + ("" if lengths is None else f"\n{lengths.tolist()}")
        return cls(
            config=config,
            ids=ids,
            lengths=lengths,
            world_size=world_size,
            steps_per_epoch=len(ids) // per_step,
            total_steps=total_steps(config, len(ids) // per_step),
            rows_fingerprint=hashlib.sha256(seen.encode()).hexdigest()[:16],
        )

    def batches(self, rank: int, *, first_step: int) -> Iterator[list[int]]:
        """Row numbers of one worker's micro-batches from a step on; jumping there costs one epoch's order."""
        order = np.empty(0, np.int64)
        for step in range(first_step, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if within == 0 or step == first_step:
                order = self.order(epoch)
            yield from step_indices(
                order,
                within,
                rank=rank,
                world_size=self.world_size,
                per_device_batch=self.config.per_device_train_batch_size,
                accumulation=self.config.accumulation(self.world_size),
            )

    def order(self, epoch: int) -> np.ndarray:
        """The order in which an epoch visits the rows, int64 (rows,)."""
        order = epoch_order(self.ids, self.config.seed, epoch)
        if self.lengths is None:
            return order
        per_step = self.config.per_device_train_batch_size * self.config.micro_batches_per_step
        return group_by_length(order, self.lengths, per_step, seed=self.config.seed, epoch=epoch)


def group_by_length(order: np.ndarray, lengths: np.ndarray, per_step: int, *, seed: int, epoch: int) -> np.ndarray:
    """An epoch's order rearranged so that the rows of a step have like lengths: int64, a permutation of `order`.

    Within stretches of 50 steps rows are sorted by length and cut into steps; then the steps of the stretch are put
    in random order, so that a model does not meet all its long rows at once. The rows that fill no whole step stay
    last, as they were. A pure function of its arguments.
    """
    whole = len(order) // per_step * per_step
    grouped = []
    for start in range(0, whole, per_step * _STEPS_PER_STRETCH):
        stretch = order[start : min(start + per_step * _STEPS_PER_STRETCH, whole)]
        steps = stretch[np.argsort(lengths[stretch], kind="stable")].reshape(-1, per_step)
        # By a hash, as rows are placed: numpy promises no equal permutations from one version to the next.
        places = [hashlib.sha256(f"{seed}:{epoch}:{start}:{i}".encode()).digest() for i in range(len(steps))]
        grouped.append(steps[sorted(range(len(steps)), key=places.__getitem__)].ravel())
    return np.concatenate([*grouped, order[whole:]])


def _lengths(config: TrainConfig, rows: Rows) -> np.ndarray | None:
    if not config.group_by_length:
        return None
    lengths: Sequence[int] | None = getattr(rows, "lengths", None)
    if lengths is None or len(lengths) != len(rows):
        raise ValueError(
            f"group_by_length needs the length of every row, which {config.dataset_dir} does not tell; "
            "prepare it again with this version, or set group_by_length=false"
        )
    return np.asarray(lengths, np.int64)
