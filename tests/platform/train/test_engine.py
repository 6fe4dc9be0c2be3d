"""What one worker can show of the engines; `test_loop` has them share a training between two."""

from __future__ import annotations

import pytest
import torch
from toy_task import ToyTask

from omni_platform.train.config import TrainConfig
from omni_platform.train.engine import deepspeed_config, make_engine, make_optimizer

CPU = torch.device("cpu")


def make(**changes) -> TrainConfig:
    return TrainConfig(run_name="r", dataset_dir="d", output_dir="o", **changes)


def test_a_weight_that_deepspeed_cannot_send_is_named(process_group: None) -> None:
    task = ToyTask({})
    task.module.extra = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"give extra shape \(1,\)"):
        make_engine(make(), task, CPU)


def test_a_task_with_everything_frozen_is_refused() -> None:
    task = ToyTask({})
    task.module.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        make_optimizer(make(), task, CPU)


def test_groups_keep_their_decay_and_scale(process_group: None) -> None:
    task = ToyTask({})
    engine = make_engine(make(engine="torch", weight_decay=0.1), task, CPU)
    x = torch.randn(2, 8)
    engine.backward((task.module.up(x) ** 2).mean())
    engine.step(0.01)
    groups = engine._optimizer.param_groups
    assert [(g["weight_decay"], g["lr"]) for g in groups] == [(0.1, 0.01), (0.0, 0.005)]


def test_the_norm_is_that_before_clipping(process_group: None) -> None:
    task = ToyTask({"dropout": 0.0})
    engine = make_engine(make(engine="torch", max_grad_norm=0.5), task, CPU)
    engine.backward(100.0 * (task.module.up(torch.ones(1, 8)) ** 2).mean())
    engine.step(0.0)
    assert engine.grad_norm() > 0.5


def test_deepspeed_is_told_the_run_s_settings() -> None:
    config = make(zero_stage=3, bf16=True, num_workers=4, gradient_accumulation_steps=6, max_grad_norm=0.7)
    words = deepspeed_config(config, world_size=2)  # half of the workers, so twice the passes of each
    assert words["zero_optimization"]["stage"] == 3
    assert words["bf16"] == {"enabled": True}
    assert (words["gradient_accumulation_steps"], words["gradient_clipping"]) == (12, 0.7)
