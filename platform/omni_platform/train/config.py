"""The configuration of a training run, in the names that Hugging Face and LLaMA-Factory users know."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from omni_platform.bounds import (
    Count,
    FolderName,
    Natural,
    NotNegative,
    Positive,
    Share,
    ShareBelowOne,
    check_fields,
)

Seed = Annotated[int, Interval(ge=0, lt=2**32)]
"""What numpy and torch both take."""
SCHEDULER_DEFAULTS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.0},
    "polynomial": {"power": 1.0, "min_lr_rate": 0.0},
    "warmup_stable_decay": {"min_lr_rate": 0.0, "decay_ratio": 0.1},
}
"""What `lr_scheduler_kwargs` may hold for each shape that takes any, and the values of those left out."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: its data, its optimisation, its place in the cluster and where it leaves things."""

    run_name: FolderName
    """Names the run: the folder of its checkpoints and its MLflow run. Starting it again resumes it (see resume)."""
    dataset_dir: str
    """The output folder of preprocess (a path or s3://)."""
    output_dir: str
    """Where the exported model, the pictures and (by default) the MLflow store go; must be shared by all nodes (a path
    or s3://)."""
    storage_path: str | None = None
    """Where checkpoints go, in a folder named after the run; must be shared by all nodes (a path or s3://).
    Default: `checkpoints` in output_dir."""
    resume: Literal["auto", "never", "force"] = "auto"
    """Where the run has checkpoints: auto continues it if settings, data, encoder and base weights are what they were,
    and otherwise names what differs and ends; never leaves it alone and ends; force continues it in spite of that."""
    init_weights_from: str | None = None
    """Begin with these weights, and with a fresh optimizer and schedule at step 0: the folder of a checkpoint
    (.../checkpoint-00000100) of the same task, or an exported model (a path or s3://)."""
    task: Any = field(default_factory=dict)
    """What the task builder receives: model, method and loss settings. The platform does not know them; a job that does
    derives a config from this one whose `task` is a dataclass, so that they are checked with the rest."""

    learning_rate: Positive = 1e-5
    """Peak learning rate."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_min_lr", "polynomial", "inverse_sqrt", "warmup_stable_decay",
        "constant_with_warmup", "constant",
    ] = "cosine"  # fmt: skip
    """Shape after the warm-up, by the names of Hugging Face. `constant` has no warm-up unless one is given."""
    lr_scheduler_kwargs: dict[str, NotNegative] = field(default_factory=dict)
    """min_lr_rate (cosine_with_min_lr, polynomial, warmup_stable_decay: share of the peak at the end), power
    (polynomial), decay_ratio (warmup_stable_decay: share of all steps that go down)."""
    warmup_ratio: Share = 0.0
    """Share of all steps with a rising learning rate."""
    warmup_steps: Natural = 0
    """Number of steps with a rising learning rate; if above 0 it replaces warmup_ratio."""
    weight_decay: NotNegative = 0.0
    """AdamW's decay, for the parameter groups that the task lets decay."""
    adam_beta1: ShareBelowOne = 0.9
    """AdamW's first-moment decay."""
    adam_beta2: ShareBelowOne = 0.999
    """AdamW's second-moment decay."""
    adam_epsilon: Positive = 1e-8
    """AdamW's denominator floor."""
    max_grad_norm: NotNegative = 1.0
    """Gradients with a larger global norm are scaled down to it; 0 switches clipping off."""
    per_device_train_batch_size: Count = 1
    """Rows in one forward pass of one worker."""
    gradient_accumulation_steps: Count = 1
    """Forward passes of one worker per optimizer step. With elastic workers: at their greatest number; fewer workers
    take more passes each, so that a step has the same rows."""
    group_by_length: bool = False
    """Put rows of like length into one step, so that less of a batch is padding; which rows is still a pure function
    of seed, epoch, row ids and lengths."""
    num_train_epochs: NotNegative = 1.0
    """Passes over the data, where max_steps does not say otherwise."""
    max_steps: int = -1
    """Optimizer steps; if above 0 it replaces num_train_epochs."""
    bf16: bool = False
    """Weights and activations in bfloat16 with a float32 copy of the weights in the optimizer."""
    seed: Seed = 42
    """Seeds weights, dropout and the order of rows."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """deepspeed shards by zero_stage; torch keeps everything on every worker (for comparison)."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shards: 1 optimizer states, 2 and gradients, 3 and weights."""
    num_workers: Count | tuple[Count, Count] = 1
    """Training workers; one per GPU where there are GPUs. A pair [min, max] is elastic: the run takes what the cluster
    has, and goes on from its newest checkpoint when that changes."""
    elastic_resize_monitor_interval_s: Positive = 60.0
    """Of elastic workers: how often to look whether the cluster has room for more."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Whether each worker gets a GPU; auto: where the cluster has at least num_workers of them."""
    resources_per_worker: dict[str, NotNegative] = field(default_factory=dict)
    """Ray resources of one worker, such as {CPU: 1}; empty: Ray's default."""
    max_failures: Annotated[int, Ge(-1)] = 0
    """How often a failed worker group is started again from the newest checkpoint. Nodes that are taken away with
    notice (preemption) do not count."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite ends the run, or leaves the weights as they are and goes on; the rows are
    named either way."""
    max_skipped_steps: Natural = 10
    """With `on_non_finite: skip`: so many skipped steps in one run end it after all."""
    prefetch_batches: Count = 2
    """Batches read and collated ahead of the step, in a background thread."""

    logging_steps: Count = 10
    """Steps between two notes to MLflow and to the progress display."""
    save_steps: Count = 500
    """Steps between two checkpoints; the last step always makes one."""
    save_total_limit: Count = 2
    """How many complete checkpoints are kept, newest first; the best one is kept beside them where there is an
    evaluation."""
    async_save: bool = True
    """Upload a checkpoint while training goes on; the step waits only for the copy on the local disk."""
    eval_dataset_dir: str | None = None
    """Prepared rows that are never trained on; checkpoints are evaluated on them."""
    eval_steps: Natural = 0
    """Steps between two evaluations, a multiple of save_steps; 0 evaluates the last checkpoint alone. They run beside
    the training, in a process of their own."""
    per_device_eval_batch_size: Count = 8
    """Rows in one forward pass of an evaluation."""
    eval_resources: dict[str, NotNegative] = field(default_factory=dict)
    """Ray resources of an evaluation, such as {GPU: 1}; empty: it reserves nothing and runs on the CPU."""
    metric_for_best_model: str = "loss"
    """The evaluation's figure by which a checkpoint is the best."""
    greater_is_better: bool = False
    """Whether a greater figure is a better one."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})
    """The MLflow store. Default: sqlite below output_dir (one machine only)."""
    experiment_name: str | None = field(default=None, metadata={"env": "MLFLOW_EXPERIMENT_NAME"})
    """The MLflow experiment."""
    registered_model_name: str | None = None
    """If given, the exported model becomes a version of this registered model, with the alias `candidate`."""
    tracking_settle_s: NotNegative = 30.0
    """How long the end of a run waits for a tracker that does not answer, before it leaves the rest in its spool."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_schedule()
        if self.engine == "torch" and self.bf16:
            raise ValueError("the torch engine has no float32 copy for bf16; use engine=deepspeed or bf16=false")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError("give max_steps or num_train_epochs above 0")
        if self.eval_steps % self.save_steps:
            raise ValueError(
                f"an evaluation reads a checkpoint: eval_steps={self.eval_steps} must be a multiple of "
                f"save_steps={self.save_steps}"
            )
        if self.eval_steps and not self.eval_dataset_dir:
            raise ValueError("eval_steps needs rows to evaluate on: give eval_dataset_dir, or leave eval_steps at 0")
        names = getattr(self.task, "metric_names", None)
        if names is not None and self.metric_for_best_model not in names:
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model} is none of what an evaluation reports: "
                f"{', '.join(names)}"
            )
        self._check_workers()

    def _check_schedule(self) -> None:
        if 0 < self.max_steps < self.warmup_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} is longer than the run of max_steps={self.max_steps}")
        known = SCHEDULER_DEFAULTS.get(self.lr_scheduler_type, {})
        if unknown := sorted(set(self.lr_scheduler_kwargs) - set(known)):
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(
                f"lr_scheduler_type {self.lr_scheduler_type} has no {', '.join(unknown)} in lr_scheduler_kwargs; "
                f"{takes}"
            )
        for name in ("min_lr_rate", "decay_ratio"):
            if (share := self.lr_scheduler_kwargs.get(name, 0.0)) > 1.0:
                raise ValueError(f"{name} of lr_scheduler_kwargs is a share between 0 and 1, got {share:g}")

    def _check_workers(self) -> None:
        low, high = self.min_workers, self.max_workers
        if low > high:
            raise ValueError(f"num_workers as a pair is [min, max] in this order, got {low}, {high}")
        uneven = [n for n in range(low, high + 1) if self.micro_batches_per_step % n]
        if uneven:
            shared_by_all = math.lcm(*range(low, high + 1))
            raise ValueError(
                f"{self.micro_batches_per_step} forward passes per step (num_workers times "
                f"gradient_accumulation_steps) cannot be shared evenly by {uneven[0]} workers; make "
                f"gradient_accumulation_steps a multiple of {shared_by_all // math.gcd(high, shared_by_all)}"
            )

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def micro_batches_per_step(self) -> int:
        """Forward passes of one optimizer step over all workers: the same however many workers there are."""
        return self.max_workers * self.gradient_accumulation_steps

    def accumulation(self, world_size: int) -> int:
        """Forward passes of one worker per optimizer step. ValueError where the workers cannot share them evenly."""
        each, rest = divmod(self.micro_batches_per_step, world_size)
        if rest:
            raise ValueError(
                f"{self.micro_batches_per_step} forward passes per step do not divide by {world_size} workers"
            )
        return each


MUST_MATCH = (
    "task", "seed", "per_device_train_batch_size", "micro_batches_per_step", "group_by_length", "bf16", "engine",
    "zero_stage", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps",
    "init_weights_from",
)  # fmt: skip
"""What a checkpoint and the run that resumes from it must have in common to be the same training. The number of
workers is not among it: the rows of a step are the same, and sharded states are divided anew."""
