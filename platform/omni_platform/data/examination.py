"""Put prepared questions to a model in an actor pool and bring the answers back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray.data

from omni_platform.data.batches import TrainingRow, TrainingRows

Examiner = Callable[[Sequence[TrainingRow]], list[dict[str, Any]]]
"""A batch of questions to one or more records each."""
BuildExaminer = Callable[[], Examiner]
"""Called once in each actor; must pickle by reference."""


def examine(
    dataset_dir: str,
    build_examiner: BuildExaminer,
    *,
    batch_size: int = 48,
    num_examiners: int = 1,
    num_gpus_per_examiner: float = 0.0,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """All records about the questions of a preprocessed folder, in the order of its rows.

    Rows go out in batches of nearly equal size, so that no batch is left with a single clip: controls that exchange
    latents need two. Raises `ValueError` for an empty folder.
    """
    count = len(TrainingRows.open(dataset_dir))
    count = count if limit is None else min(count, limit)
    if count == 0:
        raise ValueError(
            f"{dataset_dir} holds no samples to evaluate; its quarantine table says why rows were left out"
        )
    num_batches = -(-count // batch_size)
    edges = [count * i // num_batches for i in range(num_batches + 1)]
    batches = [{"batch": i, "rows": list(range(edges[i], edges[i + 1]))} for i in range(num_batches)]
    answered = (
        ray.data.from_items(batches, override_num_blocks=num_batches)
        .map_batches(
            _Actor,
            fn_constructor_args=(dataset_dir, build_examiner),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_examiners, num_batches)),
            num_gpus=num_gpus_per_examiner or None,
        )
        .take_all()
    )
    return [record for row in sorted(answered, key=lambda row: row["batch"]) for record in row["records"]]


class _Actor:
    """One examiner beside its own view of the rows."""

    def __init__(self, dataset_dir: str, build_examiner: BuildExaminer) -> None:
        self._rows = TrainingRows.open(dataset_dir)
        self._examiner = build_examiner()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [self._rows.row(int(i)) for i in batch["rows"][0]]
        return {"batch": batch["batch"], "records": [self._examiner(rows)]}
