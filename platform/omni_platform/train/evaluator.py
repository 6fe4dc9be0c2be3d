"""Evaluations that run as Ray tasks of their own while the workers train on."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

import ray

from omni_platform.train.checkpoint import Storage, prune
from omni_platform.train.config import TrainConfig
from omni_platform.train.evaluation import (
    EvaluationJob,
    best_step,
    evaluate_checkpoint,
    export_checkpoint,
    is_due,
    read_evaluation,
)
from omni_platform.train.loop import Job
from omni_platform.train.task import Rows


class Evaluations:
    """The driver's hold on the evaluations of a run; nothing where the config asks for none."""

    def __init__(self, job: Job, open_rows: Callable[[], Rows] | None, storage: Storage) -> None:
        """Starts with the checkpoints that an attempt before this one left without their evaluation."""
        self._config, self._storage = job.config, storage
        self.name: str | None = None
        """The name by which a worker finds the actor."""
        self._actor: Any = None
        if job.config.eval_dataset_dir is None:
            return
        assert open_rows is not None, "a config with eval_dataset_dir comes with open_eval_rows"
        evaluation = EvaluationJob(config=job.config, build_task=job.build_task, open_rows=open_rows, run=job.run)
        self._evaluation = evaluation
        self.name = f"evaluator-{job.config.run_name}-{uuid.uuid4().hex[:8]}"
        actor_class: Any = _Evaluator
        self._actor = actor_class.options(name=self.name).remote(evaluation, storage)
        for step in storage.steps():
            if is_due(job.config, step, -1) and read_evaluation(storage, step) is None:
                self._actor.evaluate.remote(step)

    def settle(self) -> dict[str, Any]:
        """Wait for all of them; the best checkpoint and its figures, for the summary."""
        if self.name is None:
            return {}
        problems: Any = ray.get(self._actor.settle.remote())
        for step, text in problems.items():
            print(f"{self._config.run_name}: evaluation of step {step} failed: {text}", file=sys.stderr, flush=True)
        best = best_step(self._storage, self._config)
        prune(self._storage, self._config.save_total_limit, also=() if best is None else (best,))
        figures = None if best is None else read_evaluation(self._storage, best)
        return {"best_step": best, "best_evaluation": figures, "failed_evaluations": sorted(problems)}

    def export(self, step: int, *, last_step: int) -> None:
        """Make a checkpoint's model the export of the run, in a process with the resources of an evaluation."""
        ray.get(_with_resources(self._config, export_checkpoint).remote(
            self._evaluation, self._storage, step, last_step=last_step
        ))  # fmt: skip


def ask_for_evaluation(name: str, step: int) -> None:
    """Have a checkpoint evaluated; for workers, who do not wait for it."""
    ray.get_actor(name).evaluate.remote(step)


@ray.remote(num_cpus=0)
class _Evaluator:
    """Starts evaluations and waits for them. It belongs to the driver, so that they outlive a failed worker."""

    def __init__(self, job: EvaluationJob, storage: Storage) -> None:
        self._job, self._storage = job, storage
        self._running: dict[int, Any] = {}

    def evaluate(self, step: int) -> None:
        """Begin with the checkpoint of a step; a step whose evaluation has begun is not evaluated twice."""
        if step in self._running:
            return
        task = _with_resources(self._job.config, _evaluate)
        self._running[step] = task.remote(self._job, self._storage, step)

    def settle(self) -> dict[int, str]:
        """Wait for all that have begun; returns what went wrong, by step."""
        problems: dict[int, str] = {}
        for step, reference in self._running.items():
            try:
                ray.get(reference)
            except Exception as error:  # an evaluation that fails must not take the trained model with it
                problems[step] = str(error)
        return problems


def _with_resources(config: TrainConfig, call: Callable[..., Any]) -> Any:
    resources = dict(config.eval_resources)
    task: Any = ray.remote(call)
    return task.options(num_cpus=resources.pop("CPU", 0), num_gpus=resources.pop("GPU", 0), resources=resources or None)


def _evaluate(job: EvaluationJob, storage: Storage, step: int) -> None:
    figures = evaluate_checkpoint(job, storage, step)
    shown = " · ".join(f"{name} {value:.4g}" for name, value in figures.items())
    print(f"{job.config.run_name}: evaluation of step {step} · {shown}", flush=True)
