"""The training step, and the worker that repeats it: fetch, forward, backward, step, note, save.

Every worker runs `work`; worker 0 also notes figures, writes the export and draws the curves. Nothing here
knows what started the workers: that is told by `Place`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omni_platform.tracking import TrackedRun
from omni_platform.train.checkpoint import Storage, commit, newest_sound, prune
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import Engine, make_engine
from omni_platform.train.feed import Feed
from omni_platform.train.figures import StepFigures, reduce_step
from omni_platform.train.finish import finish
from omni_platform.train.notes import Notes
from omni_platform.train.plan import Plan
from omni_platform.train.schedule import learning_rate
from omni_platform.train.state import Progress, load_progress, load_random_states, save_state, seed_everything
from omni_platform.train.task import Rows, Task, loss_weights


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done: the same for every worker."""

    config: TrainConfig
    build_task: Callable[[dict[str, Any]], Task]
    open_rows: Callable[[], Rows]
    run: TrackedRun
    on_terminal: bool = False
    """Whether a person watches a terminal."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one worker runs, and how it speaks to what started it. The process group must be up."""

    device: torch.device
    storage: Storage
    """The run's folder of checkpoints."""
    leads_node: bool
    """Whether this is the first worker of its machine."""
    stop_requested: Callable[[], bool]
    """Asked once per step, must not wait; one worker that says yes stops all."""
    report: Callable[[dict[str, float], str], None]
    """Told of every checkpoint: the last figures and the path."""


def work(job: Job, place: Place) -> dict[str, Any]:
    """One worker's whole run. Returns the summary; `stopped` in it tells of a request to stop."""
    config = job.config
    seed_everything(config.seed)  # the same weights on every worker
    task, rows = job.build_task(config.task), job.open_rows()
    task.module.train()  # pretrained models come in evaluation mode
    engine = make_engine(config, task, place.device)
    plan = Plan.make(config, rows, world_size=dist.get_world_size())
    seed_everything(config.seed + 1 + dist.get_rank())  # but not the same dropout
    progress = resume(place, engine, config, plan)
    notes = Notes(job.run, config, plan, progress, loss_weights(task), on_terminal=job.on_terminal)

    stopped, batches = False, plan.batches(dist.get_rank(), first_step=progress.step)
    with Feed(rows, batches, task.collate, depth=config.prefetch_batches) as feed:
        while progress.step < plan.total_steps and not stopped:
            rate = learning_rate(config, progress.step, plan.total_steps)
            figures = train_step(engine, feed, config, rate, place.stop_requested)
            progress.step += 1
            notes.take(figures, rate, engine.grad_norm())
            stopped = figures.stop and progress.step < plan.total_steps
            if stopped or progress.step % config.save_steps == 0 or progress.step == plan.total_steps:
                notes.flush()
                save(place, engine, config, plan, progress)
    notes.close()
    summary = {"steps": progress.step} if stopped else finish(job.run, config, task, engine, progress)
    dist.barrier()  # a worker that leaves first would break the others' last exchange
    return {"stopped": stopped, **summary}


def train_step(
    engine: Engine, feed: Feed, config: TrainConfig, rate: float, stop_requested: Callable[[], bool]
) -> StepFigures:
    """One optimizer step: forward and backward for every micro-batch, then the weights change.

    Raises FloatingPointError where the loss is not finite, naming the rows of this worker.
    """
    outputs: list[dict[str, torch.Tensor]] = []
    row_ids: list[str] = []
    waited_s = 0.0
    for _ in range(config.gradient_accumulation_steps):
        fed = next(feed)
        losses = engine.forward(fed.batch.to(engine.device))
        engine.backward(losses["loss"])
        engine.step(rate)
        outputs.append({name: value.detach() for name, value in losses.items()})
        row_ids += fed.row_ids
        waited_s += fed.waited_s
    stop = stop_requested()
    figures = reduce_step(outputs, data_wait_s=waited_s, stop=stop, device=engine.device)
    if not math.isfinite(figures.terms["loss"]):
        raise FloatingPointError(f"the loss is {figures.terms['loss']}; rows of this worker: {', '.join(row_ids)}")
    return figures


def save(place: Place, engine: Engine, config: TrainConfig, plan: Plan, progress: Progress) -> None:
    """Write a checkpoint, report it, and let go of older ones. Every worker calls it."""
    rank = dist.get_rank()
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
        engine.save(Path(folder) / "engine")
        save_state(Path(folder), progress, config, plan.rows_fingerprint, rank)
        path = commit(place.storage, progress.step, Path(folder))
    if rank == 0:
        prune(place.storage, config.save_total_limit)
    place.report({"step": progress.step, **{n: v for n, v in progress.last.items() if n == "loss"}}, path)


def resume(place: Place, engine: Engine, config: TrainConfig, plan: Plan) -> Progress:
    """Continue from the newest sound checkpoint of the run, if there is one. Every worker calls it."""
    scratch = Path(tempfile.gettempdir()) / f"resume-{config.run_name}"
    found = newest_sound(place.storage, scratch, leads_node=place.leads_node)
    if found is None:
        return Progress()
    step, folder = found
    progress = load_progress(folder, config, plan.rows_fingerprint)
    engine.load(folder / "engine")
    load_random_states(folder, dist.get_rank())
    dist.barrier()
    if place.leads_node and not place.storage.is_local:
        shutil.rmtree(scratch)
    if dist.get_rank() == 0:
        print(f"{config.run_name}: resumed from step {step}", flush=True)
    return progress
