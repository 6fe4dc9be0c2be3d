from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_platform.train.config import TrainConfig
from omni_platform.train.state import (
    Progress,
    ResumeError,
    load_progress,
    load_random_states,
    save_state,
    seed_everything,
)

CONFIG = TrainConfig(run_name="r", dataset_dir="d", output_dir="o", task={"sizes": [1, 2]}, zero_stage=1)


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    seed_everything(5)
    draw()
    save_state(tmp_path, Progress(step=3), CONFIG, "rows", rank=1)
    expected = [draw(), draw()]
    seed_everything(6)
    load_random_states(tmp_path, rank=1)
    assert [draw(), draw()] == expected


def test_seeds_decide_all_generators() -> None:
    seed_everything(5)
    first = draw()
    seed_everything(5)
    assert draw() == first


def test_progress_comes_back_to_the_bit(tmp_path: Path) -> None:
    progress = Progress(
        step=3, epoch=0.1 + 0.2, window={"loss": 1 / 3, "steps": 1.0}, first={"loss": 2.0}, last={"loss": 0.1}
    )
    save_state(tmp_path, progress, CONFIG, "rows", rank=0)
    assert load_progress(tmp_path, CONFIG, "rows") == progress
    assert len(json.loads((tmp_path / "state.json").read_text())["config_fingerprint"]) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 42, is 1"),
        ({"zero_stage": 3}, "zero_stage was 1, is 3"),
        ({"num_workers": 2}, "micro_batches_per_step was 1, is 2"),
        ({"task": {"sizes": [1]}}, "task was"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    save_state(tmp_path, Progress(step=3), CONFIG, "rows", rank=0)
    with pytest.raises(ResumeError, match=message):
        load_progress(tmp_path, dataclasses.replace(CONFIG, **changes), "rows")


def test_other_rows_are_refused_and_a_longer_run_is_not(tmp_path: Path) -> None:
    save_state(tmp_path, Progress(step=3), CONFIG, "rows", rank=0)
    with pytest.raises(ResumeError, match="rows was 'rows', is 'other'"):
        load_progress(tmp_path, CONFIG, "other")
    longer = dataclasses.replace(CONFIG, max_steps=99, save_steps=7, output_dir="elsewhere")
    assert load_progress(tmp_path, longer, "rows").step == 3
