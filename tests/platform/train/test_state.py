from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_platform.artifacts import Card, write_card
from omni_platform.train.checkpoint import Storage, checkpoint_name
from omni_platform.train.config import TrainConfig
from omni_platform.train.identity import ResumeError, check_resumable, differences, run_identity, settings_identity
from omni_platform.train.state import (
    Progress,
    load_progress,
    load_random_states,
    save_state,
    seed_everything,
)

CONFIG = TrainConfig(run_name="r", dataset_dir="d", output_dir="o", task={"sizes": [1, 2]}, zero_stage=1)


def identity(config: TrainConfig, rows: str = "rows", **task: str) -> dict:
    return run_identity(settings_identity(config), rows=rows, task=task)


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    seed_everything(5)
    draw()
    save_state(tmp_path, Progress(step=3), CONFIG, identity(CONFIG), rank=1)
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
    save_state(tmp_path, progress, CONFIG, identity(CONFIG), rank=0)
    assert load_progress(tmp_path, CONFIG, identity(CONFIG)) == progress
    assert len(json.loads((tmp_path / "state.json").read_text())["config_fingerprint"]) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 42, is 1"),
        ({"zero_stage": 3}, "zero_stage was 1, is 3"),
        ({"num_workers": 2}, "micro_batches_per_step was 1, is 2"),
        ({"task": {"sizes": [1]}}, "task.sizes was [1, 2], is [1]"),
        ({"task": {"sizes": [1, 2], "lora": 4}}, "task.lora was (not recorded), is 4"),
        ({"task": {}}, "task was (not recorded), is {}; task.sizes was [1, 2], is (not recorded)"),
        ({"learning_rate": 2e-5}, "learning_rate was 1e-05, is 2e-05"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type was 'cosine', is 'linear'"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
            "lr_scheduler_kwargs.power was (not recorded), is 2.0; lr_scheduler_type was 'cosine', is 'polynomial'",
        ),
        ({"warmup_ratio": 0.1}, "warmup_ratio was 0.0, is 0.1"),
        ({"warmup_steps": 5}, "warmup_steps was 0, is 5"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0, is 0.1"),
        ({"adam_beta1": 0.8}, "adam_beta1 was 0.9, is 0.8"),
        ({"adam_beta2": 0.9}, "adam_beta2 was 0.999, is 0.9"),
        ({"adam_epsilon": 1e-6}, "adam_epsilon was 1e-08, is 1e-06"),
        ({"max_grad_norm": 0.0}, "max_grad_norm was 1.0, is 0.0"),
        ({"num_train_epochs": 2.0}, "num_train_epochs was 1.0, is 2.0"),
        ({"max_steps": 99}, "max_steps was -1, is 99"),
        ({"init_weights_from": "/x"}, "init_weights_from was None, is '/x'"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_and_continued_if_asked(
    tmp_path: Path, changes: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_state(tmp_path, Progress(step=3), CONFIG, identity(CONFIG), rank=0)
    changed = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(ResumeError, match=re.escape(message)) as refused:
        load_progress(tmp_path, changed, identity(changed))
    assert "of run 'r' belongs to another training: " in str(refused.value)
    assert "Choose another run_name, set these back, or continue all the same with resume=force" in str(refused.value)
    forced = dataclasses.replace(changed, resume="force")
    assert load_progress(tmp_path, forced, identity(forced)).step == 3
    assert f"r: resume=force: {tmp_path.name} is continued although" in (said := capsys.readouterr().out)
    assert message in said


def test_other_rows_and_another_base_are_refused_and_another_place_is_not(tmp_path: Path) -> None:
    save_state(tmp_path, Progress(step=3), CONFIG, identity(CONFIG, base="one"), rank=0)
    with pytest.raises(ResumeError, match="rows was 'rows', is 'other'"):
        load_progress(tmp_path, CONFIG, identity(CONFIG, rows="other", base="one"))
    with pytest.raises(ResumeError, match="task_base was 'one', is 'two'"):
        load_progress(tmp_path, CONFIG, identity(CONFIG, base="two"))
    elsewhere = dataclasses.replace(CONFIG, save_steps=7, output_dir="elsewhere", logging_steps=1, max_failures=3)
    assert load_progress(tmp_path, elsewhere, identity(elsewhere, base="one")).step == 3


def test_settings_that_another_one_replaces_decide_nothing() -> None:
    steps = dataclasses.replace(CONFIG, max_steps=9, warmup_steps=2)
    epochs = dataclasses.replace(steps, num_train_epochs=5.0, warmup_ratio=0.5)
    assert identity(steps) == identity(epochs)


def write_data(folder: Path, **changes: object) -> str:
    """A card as preprocessing writes it."""
    fields = {
        "inputs": {"/film/manifest.jsonl": "m1", "clips": "c1"},
        "config": {"fps": 2.0, "output_dir": "/a"},
        "config_fingerprint": "f1",
        "encoder_fingerprint": "e1",
        "counts": {"samples": 12},
        **changes,
    }
    write_card(folder, Card(name="anchors", **fields))  # type: ignore[arg-type]
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"created_at": "2001-01-01", "code_version": "other"}, []),
        ({"config": {"fps": 2.0, "output_dir": "/b"}}, []),
        (
            {"inputs": {"/film/manifest.jsonl": "m2", "clips": "c1"}},
            ["data.inputs./film/manifest.jsonl was 'm1', is 'm2'"],
        ),
        ({"encoder_fingerprint": "e2"}, ["data.encoder_fingerprint was 'e1', is 'e2'"]),
        (
            {"config": {"fps": 4.0, "output_dir": "/a"}, "config_fingerprint": "f2"},
            ["data.config.fps was 2.0, is 4.0"],
        ),
        ({"config_fingerprint": "f2"}, ["data.config_fingerprint was 'f1', is 'f2'"]),  # another decoder
        ({"counts": {"samples": 11}}, ["data.counts.samples was 12, is 11"]),
    ],
)
def test_data_that_was_made_again_is_another_training_and_what_differs_is_named(
    tmp_path: Path, changes: dict, expected: list[str]
) -> None:
    before = identity(dataclasses.replace(CONFIG, dataset_dir=write_data(tmp_path / "data")))
    after = identity(dataclasses.replace(CONFIG, dataset_dir=write_data(tmp_path / "data", **changes)))
    assert differences(before, after) == expected


def test_an_evaluation_may_be_added_but_not_changed(tmp_path: Path) -> None:
    none = identity(CONFIG)
    first = identity(dataclasses.replace(CONFIG, eval_dataset_dir=write_data(tmp_path / "one")))
    other = identity(
        dataclasses.replace(CONFIG, eval_dataset_dir=write_data(tmp_path / "two", encoder_fingerprint="e2"))
    )
    assert differences(none, first) == []
    assert differences(first, none) == []
    assert differences(first, other) == ["eval_data.encoder_fingerprint was 'e1', is 'e2'"]


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    """A run with one complete checkpoint, of step 3."""
    store = Storage.at(str(tmp_path / "store"), "r")
    folder = tmp_path / "store" / "r" / checkpoint_name(3)
    folder.mkdir(parents=True)
    save_state(folder, Progress(step=3), CONFIG, identity(CONFIG, base="one"), rank=0)
    (folder / "COMPLETE").touch()
    return store


def test_a_run_is_refused_before_anything_is_started(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    check_resumable(CONFIG, store, settings_identity(CONFIG))
    other = dataclasses.replace(CONFIG, learning_rate=1.0)
    with pytest.raises(
        ResumeError, match=r"checkpoint-00000003 of run 'r' .* learning_rate was 1e-05, is 1\.0\. Choose"
    ):
        check_resumable(other, store, settings_identity(other))
    check_resumable(dataclasses.replace(other, resume="force"), store, settings_identity(other))
    assert "continued although learning_rate was 1e-05, is 1.0" in capsys.readouterr().out


def test_a_run_that_must_not_be_touched_is_left_alone(store: Storage, tmp_path: Path) -> None:
    never = dataclasses.replace(CONFIG, resume="never")
    with pytest.raises(
        ResumeError, match=r"run 'r' has checkpoints up to step 3 in .*store/r and resume=never: choose"
    ):
        check_resumable(never, store, settings_identity(never))
    check_resumable(never, Storage.at(str(tmp_path / "store"), "another"), settings_identity(never))
