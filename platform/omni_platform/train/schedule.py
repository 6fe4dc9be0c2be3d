"""Learning-rate schedules as pure functions of the step, so that resuming has nothing to restore.

The names and shapes are those of Hugging Face's schedulers.
"""

from __future__ import annotations

import math

from omni_platform.train.config import TrainConfig

_DEFAULTS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.0},
    "polynomial": {"power": 1.0, "min_lr_rate": 0.0},
    "warmup_stable_decay": {"min_lr_rate": 0.0, "decay_ratio": 0.1},
}


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
    """Optimizer steps of the whole run: max_steps if given, else epochs times steps per epoch."""
    if config.max_steps > 0:
        return config.max_steps
    return max(1, math.ceil(config.num_train_epochs * steps_per_epoch))


def check_schedule(config: TrainConfig) -> None:
    """ValueError for a key of `lr_scheduler_kwargs` that the configured shape does not have."""
    known = _DEFAULTS.get(config.lr_scheduler_type, {})
    unknown = sorted(set(config.lr_scheduler_kwargs) - set(known))
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(
            f"lr_scheduler_type {config.lr_scheduler_type} has no {', '.join(unknown)} in lr_scheduler_kwargs; {takes}"
        )


def _share_of_peak(config: TrainConfig, step: int, rise: int, total_steps: int) -> float:
    kind = config.lr_scheduler_type
    given = {**_DEFAULTS.get(kind, {}), **config.lr_scheduler_kwargs}
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
