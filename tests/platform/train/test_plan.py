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
    num_workers=2,
    num_train_epochs=3,
)


def rows_by_step(plan: Plan, first_step: int = 0) -> list[list[int]]:
    """All rows of every step, over ranks and micro-batches."""
    feeds = [plan.batches(rank, first_step=first_step) for rank in range(plan.world_size)]
    micro = [sorted(chain(*together)) for together in zip(*feeds, strict=True)]
    size = plan.config.accumulation(plan.world_size)
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
    config = dataclasses.replace(CONFIG, per_device_train_batch_size=1, gradient_accumulation_steps=6)
    two = Plan.make(config, ToyRows(48), world_size=2)
    assert [sorted(step) for step in rows_by_step(one)] == [sorted(step) for step in rows_by_step(two)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_workers_takes_the_same_micro_batches(world_size: int) -> None:
    config = dataclasses.replace(CONFIG, num_workers=(1, 3), gradient_accumulation_steps=2, num_train_epochs=1)
    plan = Plan.make(config, ToyRows(48), world_size=world_size)
    feeds = [list(plan.batches(rank, first_step=0)) for rank in range(world_size)]
    each = 6 // world_size  # micro-batches of a worker in a step
    assert [len(feed) for feed in feeds] == [plan.total_steps * each] * world_size
    by_step = [sorted(chain(*(feed[s * each : (s + 1) * each] for feed in feeds))) for s in range(plan.total_steps)]
    alone = Plan.make(config, ToyRows(48), world_size=1)
    whole = list(alone.batches(0, first_step=0))
    assert by_step == [sorted(whole[s * 6 : (s + 1) * 6]) for s in range(alone.total_steps)]


def test_workers_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be shared evenly by 2 workers; make .* a multiple of 2"):
        dataclasses.replace(CONFIG, num_workers=(1, 3))
    with pytest.raises(ValueError, match="6 forward passes per step do not divide by 4 workers"):
        Plan.make(CONFIG, ToyRows(26), world_size=4)


class LongRows(ToyRows):
    """Toy rows with lengths from 10 to 1009, in no order."""

    @property
    def lengths(self) -> list[int]:
        return [10 + (i * 617) % 1000 for i in range(len(self))]


def padding(plan: Plan, lengths: list[int]) -> float:
    batches = list(plan.batches(0, first_step=0))
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return 1 - sum(lengths[i] for b in batches for i in b) / padded


def test_rows_of_like_length_stand_together_and_none_is_lost() -> None:
    rows = LongRows(1000)
    config = dataclasses.replace(CONFIG, group_by_length=True, num_train_epochs=1)
    grouped, random = (
        Plan.make(c, rows, world_size=1) for c in (config, dataclasses.replace(CONFIG, num_train_epochs=1))
    )
    for epoch in (0, 1):
        assert sorted(grouped.order(epoch)) == list(range(1000))
        assert grouped.order(epoch).tolist() == grouped.order(epoch).tolist()
    assert grouped.order(0).tolist() != grouped.order(1).tolist()
    assert padding(random, rows.lengths) > 0.25
    assert padding(grouped, rows.lengths) < 0.02
    # The long rows of a stretch do not come one after another.
    longest = [max(rows.lengths[i] for i in grouped.order(0)[s * 6 : s * 6 + 6]) for s in range(50)]
    assert longest != sorted(longest)
    whole = list(grouped.batches(0, first_step=0))
    assert list(grouped.batches(0, first_step=50)) == whole[300:]


def test_grouping_needs_lengths_and_belongs_to_the_identity_of_the_rows() -> None:
    config = dataclasses.replace(CONFIG, group_by_length=True)
    with pytest.raises(ValueError, match="group_by_length needs the length of every row"):
        Plan.make(config, ToyRows(48), world_size=1)
    rows = LongRows(48)
    assert (
        Plan.make(config, rows, world_size=1).rows_fingerprint != Plan.make(CONFIG, rows, world_size=1).rows_fingerprint
    )


def test_other_rows_are_told_apart() -> None:
    assert (
        Plan.make(CONFIG, ToyRows(26), world_size=1).rows_fingerprint
        != Plan.make(CONFIG, ToyRows(27), world_size=1).rows_fingerprint
    )


def test_too_few_rows_for_one_step_are_refused() -> None:
    with pytest.raises(ValueError, match="has 11 rows and one step takes 12"):
        Plan.make(CONFIG, ToyRows(11), world_size=2)
