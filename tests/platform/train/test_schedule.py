from __future__ import annotations

import pytest

from omni_platform.train.config import TrainConfig
from omni_platform.train.schedule import learning_rate, total_steps, warmup_length


def make(**changes) -> TrainConfig:
    return TrainConfig(run_name="r", dataset_dir="d", output_dir="o", learning_rate=1.0, **changes)


def rates(config: TrainConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_linear_rises_then_falls_to_just_above_zero() -> None:
    config = make(lr_scheduler_type="linear", warmup_steps=2)
    assert rates(config, 6) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    config = make(lr_scheduler_type="cosine")
    assert rates(config, 4) == pytest.approx([1.0, 0.8535533906, 0.5, 0.1464466094])


def test_constant_keeps_the_rate_after_the_rise() -> None:
    assert rates(make(lr_scheduler_type="constant", warmup_ratio=0.5), 4) == [0.5, 1.0, 1.0, 1.0]


def test_warmup_steps_replace_the_ratio_which_rounds_up() -> None:
    assert warmup_length(make(warmup_ratio=0.05), 750) == 38
    assert warmup_length(make(warmup_ratio=0.05, warmup_steps=3), 750) == 3


def test_max_steps_replace_epochs() -> None:
    assert total_steps(make(num_train_epochs=2.5), 10) == 25
    assert total_steps(make(num_train_epochs=2.5, max_steps=7), 10) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"warmup_ratio": 3}, "between 0 and 1"),
        ({"engine": "torch", "bf16": True}, "engine=deepspeed"),
        ({"num_train_epochs": 0}, "max_steps or num_train_epochs"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
