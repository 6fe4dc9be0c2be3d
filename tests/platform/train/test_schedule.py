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


@pytest.mark.parametrize(
    ("kind", "kwargs", "expected"),
    [
        ("constant_with_warmup", {}, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, [0.5, 1.0, 1.0, 0.882842712, 0.6, 0.317157288]),
        ("polynomial", {"power": 2.0}, [0.5, 1.0, 1.0, 0.5625, 0.25, 0.0625]),
        ("inverse_sqrt", {}, [0.5, 1.0, 0.816496581, 0.707106781, 0.632455532, 0.577350269]),
        ("warmup_stable_decay", {"decay_ratio": 0.3, "min_lr_rate": 0.1}, [0.5, 1.0, 1.0, 1.0, 1.0, 0.55]),
    ],
)
def test_shapes_by_their_usual_names(kind: str, kwargs: dict[str, float], expected: list[float]) -> None:
    config = make(lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs, warmup_steps=2)
    assert rates(config, 6) == pytest.approx(expected)


def test_a_shape_refuses_a_setting_of_another() -> None:
    with pytest.raises(ValueError, match="cosine has no power in lr_scheduler_kwargs; it takes none"):
        make(lr_scheduler_kwargs={"power": 2.0})


def test_warmup_steps_replace_the_ratio_which_rounds_up() -> None:
    assert warmup_length(make(warmup_ratio=0.05), 750) == 38
    assert warmup_length(make(warmup_ratio=0.05, warmup_steps=3), 750) == 3


def test_max_steps_replace_epochs() -> None:
    assert total_steps(make(num_train_epochs=2.5), 10) == 25
    assert total_steps(make(num_train_epochs=2.5, max_steps=7), 10) == 7


def test_a_warm_up_longer_than_the_epochs_is_refused_once_the_data_are_known() -> None:
    assert total_steps(make(num_train_epochs=2.0, warmup_steps=20), 10) == 20
    with pytest.raises(ValueError, match="warmup_steps=21 is longer than the run: 2 epochs of 10 steps are 20"):
        total_steps(make(num_train_epochs=2.0, warmup_steps=21), 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"num_workers": (3, 2)}, "in this order, got 3, 2"),
        ({"warmup_ratio": 3}, "warmup_ratio must be at least 0 and at most 1, got 3"),
        ({"eval_dataset_dir": "e", "eval_steps": 30, "save_steps": 20}, "must be a multiple of save_steps=20"),
        ({"eval_steps": 500}, "give eval_dataset_dir"),
        ({"engine": "torch", "bf16": True}, "engine=deepspeed"),
        ({"num_train_epochs": 0}, "max_steps or num_train_epochs"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
