"""Evaluating a checkpoint beside the training: its weights, read back on one process, on rows never trained on.

What comes out is written into the checkpoint's folder, as `evaluation.json`, and into the run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni_platform.tracking import RunIntent, Telemetry
from omni_platform.train.checkpoint import Storage, checkpoint_name, fetch
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import read_weights
from omni_platform.train.export import Origin, write_export
from omni_platform.train.sizes import measure_rows, refusal_report
from omni_platform.train.task import Rows, Task

_FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What is to be evaluated, with what, and where the figures go."""

    config: TrainConfig
    build_task: Callable[[dict[str, Any]], Task]
    open_rows: Callable[[], Rows]
    run: RunIntent


def evaluate_checkpoint(job: EvaluationJob, storage: Storage, step: int) -> dict[str, float]:
    """Mean losses of a checkpoint over all rows, as the task computes them in evaluation mode; written down.

    Raises DamagedCheckpointError where the checkpoint is not as it was saved.
    """
    task = _task_at(job, storage, step)
    figures = mean_losses(task, job.open_rows(), job.config.per_device_eval_batch_size)
    with Telemetry(job.run) as telemetry:
        telemetry.metrics(step, {f"eval/{name}": value for name, value in figures.items()})
    storage.write(checkpoint_name(step), _FILE, json.dumps(figures).encode())
    return figures


def export_checkpoint(job: EvaluationJob, storage: Storage, step: int, *, last_step: int) -> None:
    """Replace the run's export by the model of a checkpoint, chosen by its evaluation."""
    found = read_evaluation(storage, step) or {}
    chosen_by = f"eval/{job.config.metric_for_best_model}"
    origin = Origin(
        run_name=job.config.run_name, step=step, last_step=last_step, chosen_by=chosen_by,
        value=found.get(job.config.metric_for_best_model),
    )  # fmt: skip
    write_export(job.config, _task_at(job, storage, step), origin)


def _task_at(job: EvaluationJob, storage: Storage, step: int) -> Task:
    """The task with the weights of a checkpoint."""
    scratch = Path(tempfile.mkdtemp(prefix=f"evaluate-{step}-"))
    try:
        folder = fetch(storage, step, scratch)
        task = job.build_task(job.config.task)
        _fill(task.module, read_weights(folder / "engine"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return task


def is_due(config: TrainConfig, step: int, total_steps: int) -> bool:
    """Whether the checkpoint of a step is to be evaluated."""
    if config.eval_dataset_dir is None:
        return False
    return step == total_steps or (config.eval_steps > 0 and step % config.eval_steps == 0)


def read_evaluation(storage: Storage, step: int) -> dict[str, float] | None:
    """The figures of a checkpoint; None where it was not evaluated (yet)."""
    data = storage.read(checkpoint_name(step), _FILE)
    return None if data is None else json.loads(data)


def best_step(storage: Storage, config: TrainConfig) -> int | None:
    """The evaluated complete checkpoint with the best figure, the later one of equals; None where there is none.

    Raises ValueError where evaluations have no figure of the configured name.
    """
    return _best(_evaluations(storage), config)


def to_keep(storage: Storage, config: TrainConfig, total_steps: int) -> set[int]:
    """Checkpoints that stay beside the newest: the best, and those whose evaluation is still to come."""
    if config.eval_dataset_dir is None:
        return set()
    evaluations = _evaluations(storage)
    waiting = {step for step, figures in evaluations.items() if figures is None and is_due(config, step, total_steps)}
    best = _best(evaluations, config)
    return waiting if best is None else waiting | {best}


def _evaluations(storage: Storage) -> dict[int, dict[str, float] | None]:
    """What `read_evaluation` finds for every complete checkpoint."""
    return {step: read_evaluation(storage, step) for step in storage.steps()}


def _best(evaluations: dict[int, dict[str, float] | None], config: TrainConfig) -> int | None:
    found: dict[int, float] = {}
    for step, figures in evaluations.items():
        if figures is None:
            continue
        if config.metric_for_best_model not in figures:
            raise ValueError(
                f"metric_for_best_model={config.metric_for_best_model} is none of {', '.join(sorted(figures))}"
            )
        found[step] = figures[config.metric_for_best_model] * (1 if config.greater_is_better else -1)
    return max(found, key=lambda step: (found[step], step)) if found else None


def _fill(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    missing, _ = module.load_state_dict(weights, strict=False)
    learned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if lost := sorted(learned & set(missing)):
        raise ValueError(f"the checkpoint lacks {', '.join(lost[:5])}, which the task trains")


@torch.no_grad()
def mean_losses(task: Task, rows: Rows, batch_size: int) -> dict[str, float]:
    """Every term as the task defines it over all rows at once, whatever the size of a batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, sized = task.module.eval().to(device), measure_rows(task, rows)
    if sized.refused:
        print(f"evaluation: {refusal_report(sized)}", flush=True)
    divisors = sized.divisors(np.arange(len(sized)), micro_batches=1)
    sums: dict[str, float] = {}
    for start in range(0, len(sized), batch_size):
        batch = [sized.row(i) for i in range(start, min(start + batch_size, len(sized)))]
        for name, value in module(task.collate(batch).to(device), divisors).items():
            if value.is_floating_point():
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums
