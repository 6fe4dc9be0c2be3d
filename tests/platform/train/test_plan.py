from __future__ import annotations

import dataclasses
from itertools import chain

import pytest
from toy_task import ToyRows

from omni_platform.train.config import TrainConfig
from omni_platform.train.plan import Plan

CONFIG = TrainConfig(
    run_name="r",
    dataset_dir="d",
    output_dir="o",
    per_device_train_batch_size=2,
    gradient_accumulation_steps=3,
    num_train_epochs=3,
)


def rows_by_step(plan: Plan, first_step: int = 0) -> list[list[int]]:
    """All rows of every step, over ranks and micro-batches."""
    feeds = [plan.batches(rank, first_step=first_step) for rank in range(plan.world_size)]
    micro = [sorted(chain(*together)) for together in zip(*feeds, strict=True)]
    size = CONFIG.gradient_accumulation_steps
    return [list(chain(*micro[i : i + size])) for i in range(0, len(micro), size)]


def test_an_epoch_takes_no_row_twice_and_epochs_differ() -> None:
    plan = Plan.make(CONFIG, ToyRows(26), world_size=2)
    assert (plan.steps_per_epoch, plan.total_steps) == (2, 6)
    steps = rows_by_step(plan)
    assert [len(step) for step in steps] == [12] * 6
    epochs = [list(chain(*steps[i : i + 2])) for i in (0, 2, 4)]
    assert [len(set(epoch)) for epoch in epochs] == [24, 24, 24]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("first_step", [1, 2, 5])
def test_a_later_start_is_the_tail_of_the_whole(first_step: int) -> None:
    plan = Plan.make(CONFIG, ToyRows(26), world_size=2)
    assert rows_by_step(plan, first_step) == rows_by_step(plan)[first_step:]


def test_more_workers_share_the_same_rows_of_a_step() -> None:
    one = Plan.make(CONFIG, ToyRows(48), world_size=1)
    config = dataclasses.replace(CONFIG, per_device_train_batch_size=1)
    two = Plan.make(config, ToyRows(48), world_size=2)
    assert [sorted(step) for step in rows_by_step(one)] == [sorted(step) for step in rows_by_step(two)]


def test_other_rows_are_told_apart() -> None:
    assert (
        Plan.make(CONFIG, ToyRows(26), world_size=1).rows_fingerprint
        != Plan.make(CONFIG, ToyRows(27), world_size=1).rows_fingerprint
    )


def test_too_few_rows_for_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="has 11 rows and one step takes 12"):
        Plan.make(CONFIG, ToyRows(11), world_size=2)
