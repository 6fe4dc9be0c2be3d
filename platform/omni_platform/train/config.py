"""The configuration of a training run, in the names that Hugging Face and LLaMA-Factory users know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: its data, its optimisation, its place in the cluster and where it leaves things."""

    run_name: str
    """Names the run: the folder of its checkpoints and its MLflow run. Starting it again resumes it."""
    dataset_dir: str
    """The output folder of preprocess (a path or s3://)."""
    output_dir: str
    """Where the exported model, the pictures and (by default) the MLflow store go."""
    storage_path: str | None = None
    """Where checkpoints go, in a folder named after the run; must be shared by all nodes (a path or s3://).
    Default: `checkpoints` in output_dir."""
    task: dict[str, Any] = field(default_factory=dict)
    """What the task builder receives: model, method and loss settings. The platform does not look inside."""

    learning_rate: float = 1e-5
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """Shape after the warm-up: down to zero in a line, in half a cosine, or not at all."""
    warmup_ratio: float = 0.0
    """Share of all steps with a rising learning rate."""
    warmup_steps: int = 0
    """Number of steps with a rising learning rate; if above 0 it replaces warmup_ratio."""
    weight_decay: float = 0.0
    """AdamW's decay, for the parameter groups that the task lets decay."""
    adam_beta1: float = 0.9
    """AdamW's first-moment decay."""
    adam_beta2: float = 0.999
    """AdamW's second-moment decay."""
    adam_epsilon: float = 1e-8
    """AdamW's denominator floor."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it; 0 switches clipping off."""
    per_device_train_batch_size: int = 1
    """Rows in one forward pass of one worker."""
    gradient_accumulation_steps: int = 1
    """Forward passes of one worker per optimizer step."""
    num_train_epochs: float = 1.0
    """Passes over the data, where max_steps does not say otherwise."""
    max_steps: int = -1
    """Optimizer steps; if above 0 it replaces num_train_epochs."""
    bf16: bool = False
    """Weights and activations in bfloat16 with a float32 copy of the weights in the optimizer."""
    seed: int = 42
    """Seeds weights, dropout and the order of rows."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """deepspeed shards by zero_stage; torch keeps everything on every worker (for comparison)."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shards: 1 optimizer states, 2 and gradients, 3 and weights."""
    num_workers: int = 1
    """Training workers; one per GPU where there are GPUs."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Whether each worker gets a GPU; auto: where the cluster has at least num_workers of them."""
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    """Ray resources of one worker, such as {CPU: 1}; empty: Ray's default."""
    max_failures: int = 0
    """How often a failed worker group is started again from the newest checkpoint."""
    prefetch_batches: int = 2
    """Batches read and collated ahead of the step, in a background thread."""

    logging_steps: int = 10
    """Steps between two notes to MLflow and to the progress display."""
    save_steps: int = 500
    """Steps between two checkpoints; the last step always makes one."""
    save_total_limit: int = 2
    """How many complete checkpoints are kept."""
    tracking_uri: str | None = field(default=None, metadata={"env": "MLFLOW_TRACKING_URI"})
    """The MLflow store. Default: sqlite below output_dir (one machine only)."""
    experiment_name: str | None = field(default=None, metadata={"env": "MLFLOW_EXPERIMENT_NAME"})
    """The MLflow experiment."""
    registered_model_name: str | None = None
    """If given, the exported model becomes a version of this registered model."""
    alias: str | None = "champion"
    """The alias that points to the new version."""

    def __post_init__(self) -> None:
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_workers",
                     "logging_steps", "save_steps", "save_total_limit", "prefetch_batches"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.run_name or "/" in self.run_name:
            raise ValueError(f"run_name becomes a folder name: it must not hold '/', got {self.run_name!r}")
        if not 0.0 <= self.warmup_ratio <= 1.0:
            raise ValueError(f"warmup_ratio is a share between 0 and 1, got {self.warmup_ratio}")
        if self.engine == "torch" and self.bf16:
            raise ValueError("the torch engine has no float32 copy for bf16; use engine=deepspeed or bf16=false")
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise ValueError("give max_steps or num_train_epochs above 0")


MUST_MATCH = (
    "task", "seed", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "engine",
    "zero_stage", "num_workers",
)  # fmt: skip
"""What a checkpoint and the run that resumes from it must have in common to be the same training."""
