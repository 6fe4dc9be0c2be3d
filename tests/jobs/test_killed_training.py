"""The training job itself, latents and all: every process is killed in the middle, and the same command goes on."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from omni_platform.tracking import TrackedRun, metric_history

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "platform" / "train")]

from faults import TIME_LIMIT_S, end, kill, launch, members  # noqa: E402
from test_submission import NUM_AUDIO, NUM_VISUAL, write_model, write_rows  # noqa: E402

ROOT = HERE.parents[1]
STEPS = 8


@pytest.mark.slow
def test_a_job_of_which_nothing_was_left_has_the_losses_of_one_nothing_happened_to(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    words = [
        f"output_dir={tmp_path / 'out'}",
        f"dataset_dir={write_rows(tmp_path / 'rows')}",
        f"task.model_name_or_path={write_model(tmp_path / 'model')}",
        f"task.options.num_visual={NUM_VISUAL}",
        f"task.options.num_audio={NUM_AUDIO}",
        "task.options.teacher_share=0.5",  # drawn slot by slot: random states must go on where they were
        f"tracking_uri={store}",
        "registered_model_name=null",
        "per_device_train_batch_size=1",
        "gradient_accumulation_steps=1",
        f"max_steps={STEPS}",
        "warmup_steps=4",
        "save_steps=2",
        "logging_steps=1",
    ]
    log = tmp_path / "whole.txt"
    assert end([train(words, "whole", log)]) == [0], log.read_text()[-6000:]

    log = tmp_path / "killed.txt"
    job = train(words, "killed", log)
    checkpoint = tmp_path / "out" / "checkpoints" / "killed" / "checkpoint-00000004" / "COMPLETE"
    deadline_s = time.monotonic() + TIME_LIMIT_S
    while not checkpoint.exists():
        assert job.poll() is None and time.monotonic() < deadline_s, log.read_text()[-6000:]
        time.sleep(0.02)
    kill(members(job.pid))
    assert end([job]) == [-9]
    assert end([train(words, "killed", log)]) == [0], log.read_text()[-6000:]
    (resumed_from,) = re.findall(r"resumed from step (\d+)", log.read_text())
    assert int(resumed_from) >= 4

    for term in ("loss", "text", "latent", "sync", "grad_norm"):
        whole = history(tmp_path, store, "whole", f"train/{term}")
        assert list(whole) == list(range(1, STEPS + 1))
        assert history(tmp_path, store, "killed", f"train/{term}") == whole


def train(words: list[str], run_name: str, log: Path):
    config = ROOT / "jobs" / "configs" / "train" / "tiny_cpu.yaml"
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", str(config), f"run_name={run_name}"]
    return launch([*command, *words], log)


def history(folder: Path, store: str, run_name: str, name: str) -> dict[int, float]:
    note = folder / "out" / "checkpoints" / run_name / "mlflow_run.json"
    run = TrackedRun(tracking_uri=store, experiment_id="", run_id=json.loads(note.read_text())["run_id"])
    return metric_history(run, name)
