"""What a run will take, estimated before it starts: memory of a GPU and of a machine, time, GPU hours and disk.

The model's share (weights, activations, matrix work) comes from whoever knows the model, as a `StepSize`; here it is
divided by ZeRO stage, precision and number of workers, shown as a table, and refused where it cannot fit. An elastic
run must hold for the fewest workers it may go on with: what is divided among workers is largest there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from annotated_types import Interval

from omni_platform.bounds import Count, Natural, NotNegative, Positive, check_fields
from omni_platform.train.config import TrainConfig
from omni_platform.train.footprint import Footprint, footprint_of, largest

GIB = 2**30
_BUCKET_VALUES = 5e8
"""DeepSpeed's reduce_bucket_size: gradients that are exchanged at once."""
_LIVE_VALUES = 1e9
"""DeepSpeed's stage3_max_live_parameters: weights that may be gathered at once."""


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """The GPU that is meant and the data that is expected. The defaults: an H100 of 80 GiB, reached to 43 %."""

    gpu_memory_gib: Positive = 80.0
    peak_tflops: Positive = 989.0
    """Dense bfloat16 operations of one GPU, in 10^12 a second."""
    mfu: Annotated[float, Interval(gt=0, le=1)] = 0.43
    """Share of the peak that matrix work reaches; published for LoRA of a 7B model on one H100."""
    bandwidth_gb_s: Positive = 3350.0
    """Memory bandwidth of one GPU: what a latent slot waits for is the reading of all weights."""
    reserve_gib: NotNegative = 3.0
    """Left to the CUDA context, the exchange library and fragmentation."""
    max_length: Natural = 0
    """Positions of the longest sample; 0 for that of the data, or of the longest clip that the config allows."""
    mean_length: Natural = 0
    """Positions of a middling sample, for the time; 0 for that of the data, or the longest."""
    num_rows: Natural = 0
    """Samples of an epoch; 0 for those of the data."""
    text_tokens: Count = 512
    """Words that a sample teaches: each costs a row of logits over the whole vocabulary."""
    num_phases: Natural = 2
    """Latent phases of a sample."""

    gpus_per_node: Count = 8
    """Workers that share the host memory and the disk of one machine."""
    host_memory_gib: NotNegative = 0.0
    """Memory of one machine, less what Ray's object store takes; 0 leaves it unchecked."""
    scratch_gib: NotNegative = 0.0
    """Room below TMPDIR on one machine; 0 leaves it unchecked."""

    def __post_init__(self) -> None:
        check_fields(self)


class StepSize(Protocol):
    """What a forward and backward pass of one worker takes (see `omni_model.sizing`)."""

    @property
    def num_weights(self) -> int: ...
    @property
    def num_learning(self) -> int: ...
    @property
    def largest_layer(self) -> int: ...
    @property
    def num_exported(self) -> int: ...
    @property
    def recomputes(self) -> bool: ...
    @property
    def input_bytes(self) -> float: ...
    @property
    def activation_bytes(self) -> float: ...
    @property
    def recomputed_bytes(self) -> float: ...
    @property
    def rollout_bytes(self) -> float: ...
    @property
    def flops(self) -> float: ...
    @property
    def recomputing_flops(self) -> float: ...
    @property
    def passes_in_a_row(self) -> int: ...
    @property
    def llm_weights(self) -> int: ...


MeasureStep = Callable[[Any, int], StepSize]
"""From a task's settings and a number of positions to the size of one pass over a worker's batch."""
FindSavers = Callable[[Any], Sequence[tuple[str, Any]]]
"""From a task's settings to changes of them that save memory, the mildest first: (as on the command line, settings)."""


class DoesNotFitError(ValueError):
    """The run needs more than a GPU or a machine has; the message says how much, and what would help."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes on one number of workers, in bytes of one GPU and in seconds."""

    workers: int
    memory: dict[str, float]
    """Bytes by what takes them, the reserve included."""
    notes: dict[str, str]
    """A remark on each of them."""
    capacity: float
    positions_per_step: float
    step_s: float
    rows_per_step: int
    footprint: Footprint
    """Disk, and memory of a machine."""

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


def worlds(config: TrainConfig) -> tuple[int, ...]:
    """The numbers of workers that a run is estimated for: the fewest first, and the most where they differ."""
    return tuple(sorted({config.min_workers, config.max_workers}))


def estimate(
    config: TrainConfig,
    dry: DryRunConfig,
    measure: MeasureStep,
    *,
    longest: int,
    mean: int,
    workers: int | None = None,
) -> Estimate:
    """The memory for the longest sample and the time for a middling one; by default on the fewest workers."""
    size, usual = measure(config.task, longest), measure(config.task, mean)
    workers, recompute = workers or config.min_workers, size.recomputes
    memory, notes = _states(config, size, workers)
    kept = size.recomputed_bytes if recompute else size.activation_bytes
    other = size.activation_bytes if recompute else size.recomputed_bytes
    how, instead = ("run again backwards", "kept") if recompute else ("kept", "gradient_checkpointing")
    memory["activations"] = kept
    notes["activations"] = f"of {longest:,} positions, {how} ({instead}: {other / GIB:.1f} GiB)"
    memory["latent rollout"] = size.rollout_bytes
    notes["latent rollout"] = f"keys and values of {size.passes_in_a_row} passes, one after the other"
    memory["reserve"] = dry.reserve_gib * GIB
    notes["reserve"] = "CUDA, exchange library, fragmentation"
    work = usual.flops + (usual.recomputing_flops if recompute else 0.0)
    # Forwards and twice backwards, each pass of a rollout reads the language model's weights once.
    waits = 3.0 * usual.passes_in_a_row * usual.llm_weights * _value_bytes(config) / (dry.bandwidth_gb_s * 1e9)
    rows = config.per_device_train_batch_size * config.micro_batches_per_step
    return Estimate(
        workers=workers,
        memory=memory,
        notes=notes,
        capacity=dry.gpu_memory_gib * GIB,
        positions_per_step=float(rows * mean),
        step_s=config.accumulation(workers) * (work / (dry.peak_tflops * 1e12 * dry.mfu) + waits),
        rows_per_step=rows,
        footprint=footprint_of(config, size, workers=workers, gpus_per_node=dry.gpus_per_node),
    )


def table(config: TrainConfig, dry: DryRunConfig, found: Sequence[Estimate], *, num_rows: int, mean: int) -> str:
    """The estimates, one for each number of workers (the fewest first), as a person reads them."""
    precision = "bf16" if config.bf16 else "fp32"
    sharing = f"ZeRO-{config.zero_stage}" if config.engine == "deepspeed" else "plain torch"
    gpus = " to ".join(str(one.workers) for one in found)
    lines = [f"{config.run_name}: {gpus} GPUs of {dry.gpu_memory_gib:g} GiB, {sharing}, {precision}", ""]
    for one in found:
        if len(found) > 1:
            lines += [f"--- on {one.workers} GPUs ---"]
        lines += _memory_lines(dry, one) + _time_lines(config, dry, one, num_rows=num_rows, mean=mean) + [""]
    return "\n".join([*lines, *largest([one.footprint for one in found]).lines(dry.gpus_per_node)])


def _memory_lines(dry: DryRunConfig, found: Estimate) -> list[str]:
    lines = [f"{'memory of one GPU':<22}{'GiB':>8}"]
    for name, value in found.memory.items():
        lines.append(f"  {name:<20}{value / GIB:>8.1f}  {found.notes[name] if value else 'none'}")
    verdict = "fits" if found.fits else "DOES NOT FIT"
    return [*lines, f"  {'together':<20}{found.total / GIB:>8.1f}  of {dry.gpu_memory_gib:g}: {verdict}", ""]


def _time_lines(config: TrainConfig, dry: DryRunConfig, found: Estimate, *, num_rows: int, mean: int) -> list[str]:
    per_gpu = found.positions_per_step / found.step_s / found.workers
    passes = config.accumulation(found.workers)
    lines = [
        f"{'one step':<22}",
        f"  rows                {found.rows_per_step:>8,}  {found.workers} GPUs x {passes} x "
        f"{config.per_device_train_batch_size}",
        f"  tokens              {found.positions_per_step:>8,.0f}  {mean:,} a row",
        f"  seconds             {found.step_s:>8,.1f}  {per_gpu:,.0f} tokens/s a GPU, at {dry.mfu:.0%} of "
        f"{dry.peak_tflops:g} TFLOP/s; exchange between GPUs is left out",
        "",
    ]

    def duration(name: str, steps: int, remark: str) -> str:
        seconds = steps * found.step_s
        hours = f"{seconds * found.workers / 3600:,.1f} GPU hours"
        return f"{name:<22}{_span(seconds):>8}  {remark}; {hours}"

    if num_rows:
        steps = num_rows // found.rows_per_step
        lines.append(duration("one epoch", steps, f"{steps:,} steps, {num_rows:,} rows"))
    else:
        lines.append("one epoch             unknown   there is no data yet; give dry_run.num_rows")
    if config.max_steps > 0:
        lines.append(duration("the run", config.max_steps, f"{config.max_steps:,} steps"))
    return lines


def refuse_what_cannot_fit(
    config: TrainConfig,
    dry: DryRunConfig,
    found: Estimate,
    measure: MeasureStep,
    *,
    longest: int,
    savers: FindSavers = lambda task: (),
) -> None:
    """DoesNotFitError where a GPU or a machine is too small, naming changes that would make the run fit."""
    where = f"{config.run_name} on {found.workers} GPUs"
    _refuse_machine(dry, found.footprint, where)
    if found.fits:
        return
    helps = []
    for words, changed in _remedies(config, savers):
        other = estimate(changed, dry, measure, longest=longest, mean=longest)
        if other.fits:
            helps.append(f"{words} ({other.total / GIB:.1f} GiB)")
    advice = "; ".join(helps) or "none of the usual changes is enough: shorten the clips, or take larger GPUs"
    raise DoesNotFitError(
        f"{where} needs {found.total / GIB:.1f} GiB on every GPU, and there are {dry.gpu_memory_gib:g}. "
        f"What would make it fit: {advice}"
    )


def _refuse_machine(dry: DryRunConfig, need: Footprint, where: str) -> None:
    for name, needed, there, fix in (
        ("host memory", need.host_bytes, dry.host_memory_gib, "fewer GPUs to a machine, or zero_stage=3"),
        ("disk below TMPDIR", need.scratch_bytes, dry.scratch_gib, "set TMPDIR to a larger disk"),
    ):
        if there and needed > there * GIB:
            raise DoesNotFitError(
                f"{where} needs {needed / GIB:.1f} GiB of {name} on a machine, and there are {there:g}: {fix}"
            )


def _states(config: TrainConfig, size: StepSize, workers: int) -> tuple[dict[str, float], dict[str, str]]:
    """Weights, gradients, optimizer states and exchange buffers of one worker."""
    value, stage = _value_bytes(config), config.zero_stage if config.engine == "deepspeed" else 0
    learning, all_weights = size.num_learning, size.num_weights
    # AdamW's two moments, and DeepSpeed's float32 copy of what learns, in any precision.
    per_weight = (4 if stage else 0) + 8
    divided = {"weights": stage >= 3, "gradients": stage >= 2, "optimizer states": stage >= 1}
    memory = {
        "weights": all_weights * value / (workers if divided["weights"] else 1),
        "gradients": learning * value / (workers if divided["gradients"] else 1),
        "optimizer states": learning * per_weight / (workers if divided["optimizer states"] else 1),
    }
    whose = {
        "weights": f"{all_weights / 1e9:.2f} B",
        "gradients": f"{learning / 1e9:.2f} B that learn",
        "optimizer states": f"{per_weight} bytes for each of them",
    }
    how = {True: f"divided by {workers}", False: "whole on every GPU"}
    notes = {name: f"{text}, {how[divided[name]]}" for name, text in whose.items()}
    bucket = min(_BUCKET_VALUES, learning) * value if stage else 0.0
    gathered = min(_LIVE_VALUES, all_weights) + size.largest_layer if stage >= 3 else 0.0
    memory["exchange buffers"] = bucket + gathered * value
    notes["exchange buffers"] = "gradients on their way" + (", gathered weights" if stage >= 3 else "")
    return memory, notes


def _remedies(config: TrainConfig, savers: FindSavers) -> Sequence[tuple[str, TrainConfig]]:
    """Changes that save memory, the mildest first, and then the same together."""
    found: list[tuple[str, TrainConfig]] = []

    def add(words: str, **changes: Any) -> None:
        changed = dataclasses.replace(config, **changes)
        if changed != config:
            found.append((words, changed))

    for words, task in savers(config.task):
        add(words, task=task)
    if config.engine == "deepspeed":
        add("zero_stage=3", zero_stage=3)
        for words, task in savers(config.task):
            add(f"{words} zero_stage=3", task=task, zero_stage=3)
    if config.per_device_train_batch_size > 1:
        add("per_device_train_batch_size=1", per_device_train_batch_size=1)
    if config.min_workers < config.max_workers:
        add(f"num_workers={config.max_workers}", num_workers=config.max_workers)
    return found


def _value_bytes(config: TrainConfig) -> int:
    return 2 if config.bf16 else 4


def _span(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
