"""The training step, and the worker that repeats it: fetch, forward, backward, step, note, save.

Every worker runs `work`; worker 0 also notes figures, writes the export and draws the curves. Nothing here
knows what started the workers: that is told by `Place`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from omni_platform.tracking import RunIntent
from omni_platform.train.checkpoint import gather
from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import Engine, make_engine
from omni_platform.train.feed import Feed
from omni_platform.train.figures import Signals, StepFigures, reduce_step
from omni_platform.train.finish import finish
from omni_platform.train.goodput import Goodput
from omni_platform.train.identity import run_identity
from omni_platform.train.init_weights import init_weights
from omni_platform.train.notes import Notes
from omni_platform.train.place import Place
from omni_platform.train.plan import Plan
from omni_platform.train.saving import Saver, refuse_without_lease, resume
from omni_platform.train.schedule import learning_rate
from omni_platform.train.sharded import build_sharded
from omni_platform.train.sizes import SizedRows, StepDivisors, check_counts, join_shares, measure_share, refusal_report
from omni_platform.train.state import Progress, seed_everything
from omni_platform.train.task import Rows, Task, begin_step, loss_weights, task_identity


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done: the same for every worker."""

    config: TrainConfig
    build_task: Callable[..., Task]
    """Receives the task's settings; under ZeRO-3 also `lockstep` and `whole` (see `build_sharded`)."""
    open_rows: Callable[[], Rows]
    run: RunIntent
    on_terminal: bool = False
    """Whether a person watches a terminal."""
    settings_identity: Mapping[str, Any] = field(default_factory=dict)
    """What the driver knows of the run's identity (`settings_identity`)."""


def work(job: Job, place: Place) -> dict[str, Any]:
    """One worker's whole run. Returns the summary; `stopped` in it tells of a request to stop."""
    config, goodput = job.config, Goodput()
    seed_everything(config.seed)  # the same weights on every worker
    task = build_sharded(config, job.build_task, place.device)
    rows = _measure(job, task)
    init_weights(config, task, place)
    task.module.train()  # pretrained models come in evaluation mode
    engine = make_engine(config, task, place.device)
    plan = Plan.make(config, rows, world_size=dist.get_world_size())
    seed_everything(config.seed + 1 + dist.get_rank())  # but not the same dropout
    own = task_identity(task) if dist.get_rank() == 0 else {}
    identity = run_identity(job.settings_identity, rows=plan.rows_fingerprint, task=gather(dict(own))[0])
    progress = resume(place, engine, config, identity, goodput)
    if progress.step >= plan.total_steps and dist.get_rank() == 0:
        print(f"{config.run_name}: already finished at step {progress.step}; nothing is trained", flush=True)
    with Notes(job.run, config, plan, progress, loss_weights(task), on_terminal=job.on_terminal) as notes:
        _note_refused(job, notes, rows)
        saver = Saver(place, engine, config, plan, identity, progress, goodput, partial(notes.tag, "checkpoint_failed"))
        parts = _Parts(
            task=task, rows=rows, engine=engine, plan=plan, divisors=StepDivisors(rows, plan), progress=progress,
            goodput=goodput, saver=saver, notes=notes,
        )  # fmt: skip
        stopped = _train(job, place, parts)
        saver.settle()
        refuse_without_lease(place, config)
        summary = {"steps": progress.step} if stopped else finish(notes, config, task, engine, progress)
    summary["checkpoint_failed"] = gather(saver.failure)[0]
    dist.barrier()  # a worker that leaves first would break the others' last exchange
    skipped = {"skipped_steps": len(progress.skipped)}
    return {"stopped": stopped, **summary, **rows.account, **skipped, "goodput": goodput.shares()}


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What one worker trains with."""

    task: Task
    rows: SizedRows
    engine: Engine
    plan: Plan
    divisors: StepDivisors
    progress: Progress
    goodput: Goodput
    saver: Saver
    notes: Notes


def _train(job: Job, place: Place, parts: _Parts) -> bool:
    """Step after step to the end of the plan; whether the run was asked to stop before."""
    task, engine, plan, progress = parts.task, parts.engine, parts.plan, parts.progress
    saver, notes = parts.saver, parts.notes
    config = job.config
    stopped, noticed, batches = False, False, plan.batches(dist.get_rank(), first_step=progress.step)
    with Feed(parts.rows, batches, task.collate, depth=config.prefetch_batches) as feed:
        while progress.step < plan.total_steps and not stopped:
            rate = learning_rate(config, progress.step, plan.total_steps)
            begin_step(task, progress.step, plan.total_steps)
            with parts.goodput.step() as waits_s:
                figures = train_step(
                    engine,
                    feed,
                    config,
                    rate,
                    place,
                    waits_s,
                    divisors=parts.divisors.of(progress.step),
                    uploaded=saver.own_share_done,
                )
            progress.step += 1
            if figures.bad_rows:
                _note_skipped(job, notes, progress, figures)
            notes.take(figures, rate, engine.grad_norm())
            if figures.uploaded:
                saver.complete()
            stopped = figures.stop and progress.step < plan.total_steps
            notice, noticed = figures.preempted and not noticed, figures.preempted
            if notice:
                _note_preemption(job, notes, progress.step)
            at_once = stopped or notice or progress.step == plan.total_steps
            if at_once or progress.step % config.save_steps == 0:
                saver.save(wait=at_once or not config.async_save, stopped=stopped)
    return stopped


def _measure(job: Job, task: Task) -> SizedRows:
    """The rows that the task takes with their sizes, each worker measuring its share."""
    rows, rank, world_size = job.open_rows(), dist.get_rank(), dist.get_world_size()
    return join_shares(rows, gather(measure_share(task, rows, rank=rank, world_size=world_size)))


def _note_refused(job: Job, notes: Notes, rows: SizedRows) -> None:
    if rows.refused and dist.get_rank() == 0:
        print(f"{job.config.run_name}: {refusal_report(rows)}", flush=True)
        notes.tag("rows_refused", refusal_report(rows)[:4000])


def train_step(
    engine: Engine,
    feed: Feed,
    config: TrainConfig,
    rate: float,
    place: Place,
    waits_s: list[float],
    *,
    divisors: Mapping[str, float],
    uploaded: bool,
) -> StepFigures:
    """One optimizer step: forward and backward for every micro-batch, then the weights change.

    They do not change where the loss or the gradient is not finite; `bad_rows` then names the rows. `divisors` are
    those of the step's loss terms in each micro-batch (see `Task.module`). `waits_s` is given the time spent waiting
    for batches; `uploaded` is what this worker tells the others of a checkpoint on its way.
    """
    outputs: list[dict[str, torch.Tensor]] = []
    fed_ids: list[list[str]] = []
    for _ in range(config.accumulation(dist.get_world_size())):
        fed = next(feed)
        waits_s.append(fed.waited_s)
        losses = engine.forward(fed.batch.to(engine.device), divisors)
        engine.backward(poisoned_if_not_finite(losses["loss"]))
        engine.step(rate)
        outputs.append({name: value.detach() for name, value in losses.items()})
        fed_ids.append(fed.row_ids)
    signals = Signals(
        data_wait_s=sum(waits_s), stop=place.stop_requested(), preempted=place.preempted(), uploaded=uploaded
    )
    figures = reduce_step(outputs, signals, device=engine.device)
    check_counts(figures.counts, divisors, micro_batches=config.micro_batches_per_step)
    norm = engine.grad_norm()
    if math.isfinite(figures.terms["loss"]) and (norm is None or math.isfinite(norm)):
        return figures
    own = [ids for o, ids in zip(outputs, fed_ids, strict=True) if not math.isfinite(float(o["loss"]))]
    # Where every loss is finite the gradient alone is not, and any row of the step may be the cause.
    rows, all_rows = gather(own), gather(fed_ids)
    named = [name for share in (rows if any(rows) else all_rows) for ids in share for name in ids]
    return dataclasses.replace(figures, bad_rows=tuple(named))


def poisoned_if_not_finite(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself, or NaN with a NaN gradient, which no engine steps with: a loss that is not finite can have a
    gradient that is."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan")).to(loss.dtype)


def _note_skipped(job: Job, notes: Notes, progress: Progress, figures: StepFigures) -> None:
    """Tell of a step that changed nothing; FloatingPointError where the run is not to go on."""
    config = job.config
    loss, step = figures.terms["loss"], progress.step
    what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    text = f"step {step}: {what}; rows: {', '.join(figures.bad_rows)}"
    progress.skipped.append(step)
    if config.on_non_finite == "stop":
        raise FloatingPointError(f"{text}. Look at these rows, lower learning_rate, or set on_non_finite=skip")
    if len(progress.skipped) > config.max_skipped_steps:
        raise FloatingPointError(
            f"{text}. {len(progress.skipped)} such steps are more than max_skipped_steps={config.max_skipped_steps}"
        )
    if dist.get_rank() == 0:
        print(f"{config.run_name}: skipped {text}", flush=True)
        notes.tag(f"skipped.{step}", ", ".join(figures.bad_rows)[:4000])


def _note_preemption(job: Job, notes: Notes, step: int) -> None:
    if dist.get_rank() == 0:
        print(f"{job.config.run_name}: a node will be taken away; saving step {step} now", flush=True)
        notes.tag("preempted", f"saved at step {step}")
