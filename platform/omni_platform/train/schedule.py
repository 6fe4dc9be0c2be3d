"""Learning-rate schedules as pure functions of the step, so that resuming has nothing to restore.

The names and shapes are those of Hugging Face's schedulers.
"""

from __future__ import annotations

import math

from omni_platform.train.config import SCHEDULER_DEFAULTS, TrainConfig


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate for the 0-based `step` of `total_steps`: a linear rise, then the configured shape."""
    rise = warmup_length(config, total_steps)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    return config.learning_rate * _share_of_peak(config, step, rise, total_steps)


def warmup_length(config: TrainConfig, total_steps: int) -> int:
    """Steps of the linear rise."""
    return config.warmup_steps or math.ceil(config.warmup_ratio * total_steps)


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: max_steps if given, else epochs times steps per epoch.

    Raises `ValueError` where the warm-up is longer (without max_steps only the data tell).
    """
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_per_epoch)
    if config.warmup_steps > max(1, steps):
        raise ValueError(
            f"warmup_steps={config.warmup_steps} is longer than the run: {config.num_train_epochs:g} epochs of "
            f"{steps_per_epoch} steps are {max(1, steps)}"
        )
    return max(1, steps)


def _share_of_peak(config: TrainConfig, step: int, rise: int, total_steps: int) -> float:
    kind = config.lr_scheduler_type
    given = {**SCHEDULER_DEFAULTS.get(kind, {}), **config.lr_scheduler_kwargs}
    done = (step - rise) / max(1, total_steps - rise)
    floor = given.get("min_lr_rate", 0.0)
    if kind in ("constant", "constant_with_warmup"):
        return 1.0
    if kind == "inverse_sqrt":
        scale = max(rise, 1)
        return math.sqrt(scale / max(step + 1, scale))
    if kind == "warmup_stable_decay":
        down = max(1, math.ceil(given["decay_ratio"] * total_steps))
        done = max(0.0, (step - (total_steps - down)) / down)
        return floor + (1.0 - floor) * (1.0 - done)
    if kind in ("linear", "polynomial"):
        return floor + (1.0 - floor) * (1.0 - done) ** given.get("power", 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
