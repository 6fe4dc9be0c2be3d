"""What a training run is given: a task (a model with its losses) and the rows it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from omni_platform.schema import RowSize


class Task(Protocol):
    """A model and everything that is particular about training it. Built once on every worker."""

    module: torch.nn.Module
    """`module(batch, divisors)` returns tensors by name: `loss` (scalar, with gradient), then the named raw terms
    (floating scalars, averaged over micro-batches and workers) and counts (integer scalars, summed), among
    them `tokens`. The names are the same in every call and on every worker.

    A term is its sum over the batch divided by `divisors[name]`, the count of the whole optimizer step divided by its
    number of micro-batches: the average is then sum by count, however the step is cut into micro-batches. What a batch
    added to the count of a term is the count `count/<term>`, where the task returns it."""

    def collate(self, rows: list[Any]) -> Any:
        """A batch of rows, with a method `.to(device)`. Runs in a background thread: no random numbers."""
        ...

    def size(self, outline: Any) -> RowSize:
        """How long a row is and what it adds to the count of every term, from `Rows.outline` of it.

        ValueError for a row that the task cannot train on.
        """
        ...

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Trainable parameters as optimizer groups (`params`, `weight_decay`, optionally `lr_scale`)."""
        ...

    def export(self, folder: Path) -> None:
        """Write the model so that it can be served. Called on worker 0 with whole weights at hand."""
        ...

    # `identity`, where a task has it: a mapping of texts that change with what the task is made of besides its
    # settings, such as the content of the base weights. Asked on worker 0; a run is resumed only where it is the same.

    # `load_weights(folder)`, where a task has it: take the weights of a model that `export` wrote (every worker).

    # `begin_step(step, total_steps)`, where a task has it: called before every optimizer step on every worker, with
    # the 0-based step. What it changes must be a function of these two, so that resuming has nothing to restore.


class Rows(Protocol):
    """Rows with stable ids and access by number."""

    @property
    def ids(self) -> Sequence[str]: ...

    # `lengths`, where a source has it: Sequence[int], the positions of each row (see `group_by_length`).

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any: ...

    def outline(self, index: int) -> Any:
        """What `Task.size` needs to know of a row: everything but its content."""
        ...


def begin_step(task: Task, step: int, total_steps: int) -> None:
    """Tell a task that asks for it which step begins."""
    if (told := getattr(task, "begin_step", None)) is not None:
        told(step, total_steps)


def task_identity(task: Task) -> Mapping[str, str]:
    """What the task is made of besides its settings, where it reports it."""
    return getattr(task, "identity", {})


def loss_weights(task: Task) -> Mapping[str, float]:
    """The weight of each raw term in `loss`, where the task tells it (`task.loss_weights`), else nothing."""
    return getattr(task, "loss_weights", {})
