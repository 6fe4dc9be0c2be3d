"""Changes of a training task that save memory on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omni_model.method_options import LatentOmniOptions
from omni_model.task_config import TaskConfig


def memory_savers(task: TaskConfig) -> Sequence[tuple[str, TaskConfig]]:
    """The mildest first, each as on the command line of a training job and as the changed settings."""
    recomputing = replace(task, gradient_checkpointing=True)
    found = [("task.gradient_checkpointing=true", recomputing)]
    if not task.lora_rank:
        frozen = tuple(part for part in task.freeze if part != "llm")
        lora = replace(recomputing, lora_rank=16, freeze=frozen)
        found.append(("task.gradient_checkpointing=true task.lora_rank=16", lora))
    if isinstance(task.options, LatentOmniOptions):
        parallel = replace(recomputing, options=replace(task.options, engine="teacher_parallel"))
        found.append(("task.gradient_checkpointing=true task.options.engine=teacher_parallel", parallel))
    return found
