"""Learning-rate schedules as pure functions of the step, so that resuming has nothing to restore."""

from __future__ import annotations

import math

from omni_platform.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate for the 0-based `step` of `total_steps`: a linear rise, then the configured shape."""
    rise = warmup_length(config, total_steps)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = (step - rise) / max(1, total_steps - rise)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1.0 - done)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def warmup_length(config: TrainConfig, total_steps: int) -> int:
    """Steps of the linear rise."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: max_steps if given, else epochs times steps per epoch."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, math.ceil(config.num_train_epochs * steps_per_epoch))
