"""How long every row is and what it adds to each loss term, measured by the task that trains on it.

Known before the first step, so that a step's terms can be divided by their numbers over all its micro-batches and
workers without exchanging anything, and rows that the task cannot take are reported before the run begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omni_platform.schema import RowSize
from omni_platform.train.plan import Plan
from omni_platform.train.task import Rows, Task


class SizedRows:
    """The rows that the task takes, each with its size; those it refuses are left out and named."""

    def __init__(self, rows: Rows, found: Sequence[RowSize | str]) -> None:
        """`found` holds the size of every row, or why the task cannot take it. ValueError where no row is left."""
        sizes = {number: size for number, size in enumerate(found) if isinstance(size, RowSize)}
        self._rows, self._taken = rows, list(sizes)
        self.refused = {rows.ids[number]: words for number, words in enumerate(found) if isinstance(words, str)}
        """Row id -> why the task cannot take it."""
        if not sizes:
            first = next(iter(self.refused.values()), "there are none")
            raise ValueError(f"none of the {len(rows)} rows can be trained on. The first: {first}")
        self.ids: Sequence[str] = [rows.ids[number] for number in self._taken]
        self.lengths: Sequence[int] = [size.length for size in sizes.values()]
        """Positions of every row's sequence."""
        names = next(iter(sizes.values())).counts
        self._counts = {name: np.array([size.counts[name] for size in sizes.values()], np.int64) for name in names}

    def __len__(self) -> int:
        return len(self._taken)

    def row(self, index: int) -> Any:
        return self._rows.row(self._taken[index])

    def outline(self, index: int) -> Any:
        return self._rows.outline(self._taken[index])

    @property
    def account(self) -> dict[str, int]:
        """Rows in are rows used and rows refused."""
        return {"rows_in": len(self._rows), "rows_used": len(self), "rows_refused": len(self.refused)}

    def divisors(self, numbers: Sequence[int] | np.ndarray, *, micro_batches: int) -> dict[str, float]:
        """By term, the count over the given rows, an optimizer step's, divided by the step's number of micro-batches.

        1 for a term that none of the rows has: its sum is 0.
        """
        sums = {name: int(column[numbers].sum()) for name, column in self._counts.items()}
        return {name: total / micro_batches if total else 1.0 for name, total in sums.items()}


class StepDivisors:
    """What every loss term of a step is divided by in each of its micro-batches."""

    def __init__(self, rows: SizedRows, plan: Plan) -> None:
        self._rows, self._plan = rows, plan
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def of(self, step: int) -> dict[str, float]:
        """Divisors of an optimizer step: a pure function of the plan, the same on every worker."""
        config, (epoch, within) = self._plan.config, divmod(step, self._plan.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._plan.order(epoch)
        per_step = config.per_device_train_batch_size * config.micro_batches_per_step
        numbers = self._order[within * per_step : (within + 1) * per_step]
        return self._rows.divisors(numbers, micro_batches=config.micro_batches_per_step)


def check_counts(counted: Mapping[str, float], divisors: Mapping[str, float], *, micro_batches: int) -> None:
    """RuntimeError where the batches of a step hold other numbers than their rows were measured to have.

    The terms would then be divided by something else than what they were summed over.
    """
    for name, divisor in divisors.items():
        found, measured = counted.get(f"count/{name}"), divisor * micro_batches
        nothing_to_count = found == 0 and divisor == 1.0
        if found is not None and not nothing_to_count and round(measured) != round(found):
            raise RuntimeError(
                f"the rows of this step were measured to have {measured:g} of `{name}`, and their batches hold "
                f"{found:g}: the task's `size` and its module do not agree"
            )


def refusal_report(rows: SizedRows, *, most: int = 20) -> str:
    """How many rows the task refuses, which, and why the first."""
    ids = list(rows.refused)
    named = ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
    account = "{rows_in} rows in = {rows_used} used + {rows_refused} refused".format(**rows.account)
    return f"{account}: {named}. The first: {rows.refused[ids[0]]}"


def measure_share(task: Task, rows: Rows, *, rank: int, world_size: int) -> list[RowSize | str]:
    """The sizes of every `world_size`-th row from `rank` on; for a row that the task refuses, its words."""
    return [_size_or_refusal(task, rows, number) for number in range(rank, len(rows), world_size)]


def join_shares(rows: Rows, shares: Sequence[Sequence[RowSize | str]]) -> SizedRows:
    """What all workers measured, by rank, as one."""
    return SizedRows(rows, [shares[number % len(shares)][number // len(shares)] for number in range(len(rows))])


def measure_rows(task: Task, rows: Rows) -> SizedRows:
    """All sizes, on one process."""
    return join_shares(rows, [measure_share(task, rows, rank=0, world_size=1)])


def _size_or_refusal(task: Task, rows: Rows, number: int) -> RowSize | str:
    try:
        return task.size(rows.outline(number))
    except ValueError as error:
        return str(error)
