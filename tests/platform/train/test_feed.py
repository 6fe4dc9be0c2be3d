from __future__ import annotations

import threading

import pytest
from toy_task import ToyRows, ToyTask

from omni_platform.train.feed import Feed


def collate(rows: list) -> list[int]:
    return [number for number, _, _ in rows]


def test_batches_come_in_order_with_the_ids_of_their_rows() -> None:
    with Feed(ToyRows(6), iter([[4, 2], [0, 5]]), collate, depth=1) as feed:
        first, second = next(feed), next(feed)
        assert (first.batch, first.row_ids) == ([4, 2], ["row-4", "row-2"])
        assert (second.batch, second.row_ids) == ([0, 5], ["row-0", "row-5"])
        assert first.waited_s >= 0.0
        with pytest.raises(StopIteration):
            next(feed)


def test_a_failure_in_the_thread_reaches_the_step() -> None:
    task = ToyTask({"fail_at": 3})
    with Feed(ToyRows(6), iter([[0], [3]]), task.collate, depth=2) as feed:
        next(feed)
        with pytest.raises(ValueError, match="row that cannot be collated"):
            next(feed)


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    endless = iter(lambda: [1], None)
    with Feed(ToyRows(6), endless, collate, depth=2) as feed:
        next(feed)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
