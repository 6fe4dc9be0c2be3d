"""What a run will take, told before it starts: memory of a GPU, time of a step and of an epoch.

The model's share (weights, activations, matrix work) comes from whoever knows the model, as a `StepSize`; here it is
divided by ZeRO stage, precision and number of workers, shown as a table, and refused where it cannot fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omni_platform.train.config import TrainConfig

GIB = 2**30
_BUCKET_VALUES = 5e8
"""DeepSpeed's reduce_bucket_size: gradients that are exchanged at once."""
_LIVE_VALUES = 1e9
"""DeepSpeed's stage3_max_live_parameters: weights that may be gathered at once."""


@dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """The GPU that is meant and the data that is expected. The defaults: an H100 of 80 GiB, reached to 43 %."""

    gpu_memory_gib: float = 80.0
    peak_tflops: float = 989.0
    """Dense bfloat16 operations of one GPU, in 10^12 a second."""
    mfu: float = 0.43
    """Share of the peak that matrix work reaches; published for LoRA of a 7B model on one H100."""
    bandwidth_gb_s: float = 3350.0
    """Memory bandwidth of one GPU: what a latent slot waits for is the reading of all weights."""
    reserve_gib: float = 3.0
    """Left to the CUDA context, the exchange library and fragmentation."""
    max_length: int = 0
    """Positions of the longest sample; 0 for that of the data, or of the longest clip that the config allows."""
    mean_length: int = 0
    """Positions of a middling sample, for the time; 0 for that of the data, or the longest."""
    num_rows: int = 0
    """Samples of an epoch; 0 for those of the data."""
    text_tokens: int = 512
    """Words that a sample teaches: each costs a row of logits over the whole vocabulary."""
    num_phases: int = 2
    """Latent phases of a sample."""

    def __post_init__(self) -> None:
        for name in ("gpu_memory_gib", "peak_tflops", "bandwidth_gb_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name):g}")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is a share between 0 and 1, got {self.mfu:g}")


class StepSize(Protocol):
    """What a forward and backward pass of one worker takes (see `omni_model.sizing`)."""

    @property
    def num_weights(self) -> int: ...
    @property
    def num_learning(self) -> int: ...
    @property
    def largest_layer(self) -> int: ...
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


MeasureStep = Callable[[Mapping[str, Any], int], StepSize]
"""From a task's options and a number of positions to the size of one pass over a worker's batch."""


class DoesNotFitError(ValueError):
    """The run needs more memory than a GPU has; the message says how much, and what would help."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes, in bytes of one GPU and in seconds."""

    memory: dict[str, float]
    """Bytes by what takes them, the reserve included."""
    notes: dict[str, str]
    """A remark on each of them."""
    capacity: float
    positions_per_step: float
    step_s: float
    rows_per_step: int

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


def estimate(config: TrainConfig, dry: DryRunConfig, measure: MeasureStep, *, longest: int, mean: int) -> Estimate:
    """The memory for the longest sample and the time for a middling one."""
    size, usual = measure(config.task, longest), measure(config.task, mean)
    workers, recompute = config.max_workers, bool(config.task.get("gradient_checkpointing", False))
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
        memory=memory,
        notes=notes,
        capacity=dry.gpu_memory_gib * GIB,
        positions_per_step=float(rows * mean),
        step_s=config.accumulation(workers) * (work / (dry.peak_tflops * 1e12 * dry.mfu) + waits),
        rows_per_step=rows,
    )


def table(config: TrainConfig, dry: DryRunConfig, found: Estimate, *, num_rows: int, mean: int) -> str:
    """The estimate as a person reads it."""
    precision = "bf16" if config.bf16 else "fp32"
    sharing = f"ZeRO-{config.zero_stage}" if config.engine == "deepspeed" else "plain torch"
    lines = [
        f"{config.run_name}: {config.max_workers} GPUs of {dry.gpu_memory_gib:g} GiB, {sharing}, {precision}",
        "",
        f"{'memory of one GPU':<22}{'GiB':>8}",
    ]
    for name, value in found.memory.items():
        lines.append(f"  {name:<20}{value / GIB:>8.1f}  {found.notes[name] if value else 'none'}")
    verdict = "fits" if found.fits else "DOES NOT FIT"
    lines += [f"  {'together':<20}{found.total / GIB:>8.1f}  of {dry.gpu_memory_gib:g}: {verdict}", ""]
    per_gpu = found.positions_per_step / found.step_s / config.max_workers
    lines += [
        f"{'one step':<22}",
        f"  rows                {found.rows_per_step:>8,}  {config.max_workers} GPUs x "
        f"{config.gradient_accumulation_steps} x {config.per_device_train_batch_size}",
        f"  tokens              {found.positions_per_step:>8,.0f}  {mean:,} a row",
        f"  seconds             {found.step_s:>8,.1f}  {per_gpu:,.0f} tokens/s a GPU, at {dry.mfu:.0%} of "
        f"{dry.peak_tflops:g} TFLOP/s; exchange between GPUs is left out",
        "",
    ]
    if num_rows:
        steps = num_rows // found.rows_per_step
        lines.append(f"one epoch             {_span(steps * found.step_s):>8}  {steps:,} steps, {num_rows:,} rows")
    else:
        lines.append("one epoch             unknown   there is no data yet; give dry_run.num_rows")
    if config.max_steps > 0:
        lines.append(f"the run               {_span(config.max_steps * found.step_s):>8}  {config.max_steps:,} steps")
    return "\n".join(lines)


def refuse_what_cannot_fit(
    config: TrainConfig, dry: DryRunConfig, found: Estimate, measure: MeasureStep, *, longest: int
) -> None:
    """DoesNotFitError where a GPU is too small, naming changes that would make the run fit."""
    if found.fits:
        return
    helps = []
    for words, changed in _remedies(config):
        other = estimate(changed, dry, measure, longest=longest, mean=longest)
        if other.fits:
            helps.append(f"{words} ({other.total / GIB:.1f} GiB)")
    advice = "; ".join(helps) or "none of the usual changes is enough: shorten the clips, or take larger GPUs"
    raise DoesNotFitError(
        f"{config.run_name} needs {found.total / GIB:.1f} GiB on every GPU, and there are {dry.gpu_memory_gib:g}. "
        f"What would make it fit: {advice}"
    )


def _states(config: TrainConfig, size: StepSize, workers: int) -> tuple[dict[str, float], dict[str, str]]:
    """Weights, gradients, optimizer states and exchange buffers of one worker."""
    value, stage = _value_bytes(config), config.zero_stage if config.engine == "deepspeed" else 0
    learning, all_weights = size.num_learning, size.num_weights
    # A float32 copy beside bfloat16 weights, and AdamW's two moments.
    per_weight = (4 if config.bf16 else 0) + 8
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


def _remedies(config: TrainConfig) -> Sequence[tuple[str, TrainConfig]]:
    """Changes that save memory, the mildest first, and then the same together."""
    task = config.task
    checkpointing = {**task, "gradient_checkpointing": True}
    options = {**task.get("options", {}), "engine": "teacher_parallel"}
    found: list[tuple[str, TrainConfig]] = []

    def add(words: str, **changes: Any) -> None:
        changed = dataclasses.replace(config, **changes)
        if changed != config:
            found.append((words, changed))

    add("task.gradient_checkpointing=true", task=checkpointing)
    if config.engine == "deepspeed":
        add("zero_stage=3", zero_stage=3)
        add("task.gradient_checkpointing=true zero_stage=3", task=checkpointing, zero_stage=3)
    if not task.get("lora_rank"):
        frozen = [name for name in task.get("freeze", ()) if name != "llm"]
        lora = {**checkpointing, "lora_rank": 16, "freeze": frozen}
        add("task.gradient_checkpointing=true task.lora_rank=16", task=lora)
    if task.get("method", "latent_omni") == "latent_omni":
        add(
            "task.gradient_checkpointing=true task.options.engine=teacher_parallel",
            task={**checkpointing, "options": options},
        )
    if config.per_device_train_batch_size > 1:
        add("per_device_train_batch_size=1", per_device_train_batch_size=1)
    return found


def _value_bytes(config: TrainConfig) -> int:
    return 2 if config.bf16 else 4


def _span(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
