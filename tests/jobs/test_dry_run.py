"""The door's dry run, as a person types it: the paper's preset on 8 GPUs, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from omni_model.sizing import longest_clip, size_step
from omni_model.task import build_task
from omni_platform.artifacts import Card, write_card
from omni_platform.config import load_config
from omni_platform.data.parts import Part, write_part
from omni_platform.media.decode import DecodedClip
from omni_platform.schema import LookStep, Sample, TextStep
from omni_platform.train.footprint import footprint_of

ROOT = Path(__file__).parents[2]


def dry_run(*words: str, preset: str = "latentomni_7b") -> subprocess.CompletedProcess[str]:
    preset_file = f"jobs/configs/train/{preset}.yaml"
    command = [sys.executable, "jobs/train.py", "--config", preset_file, "dataset_dir=none", "--dry-run", *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_the_7b_preset_on_8_gpus_with_256_frames_fits():
    done = dry_run("dry_run.num_rows=36000")
    assert done.returncode == 0, done.stderr
    assert "latentomni-7b: 8 GPUs of 80 GiB, ZeRO-2, bf16" in done.stdout
    assert "8.98 B, whole on every GPU" in done.stdout and "375 steps, 36,000 rows" in done.stdout
    assert "of 80: fits" in done.stdout
    assert "of 37,072 positions, run again backwards" in done.stdout  # 256 frames, and their sound
    assert not list(ROOT.glob("none*"))  # nothing was started, nothing written


def test_the_preset_tells_disk_memory_of_a_machine_and_gpu_hours():
    """8.98 B weights in bf16, 8.31 B of them with 12 bytes of optimizer states: 109.6 GiB a checkpoint."""
    lines = dry_run("dry_run.num_rows=36000").stdout.splitlines()
    assert "one epoch               12.8 h  375 steps, 36,000 rows; 102.4 GPU hours" in lines
    assert "the run                 25.6 h  750 steps; 204.8 GPU hours" in lines
    assert lines[-7:] == [
        "disk                       GiB",
        "  storage_path           328.7  3 checkpoints of 109.6",
        "  export                  50.2  3 x 16.7",
        "  TMPDIR of a machine    109.6  checkpoints on their way to and from storage_path",
        "",
        "memory of a machine        GiB",
        "  workers                281.6  at most 8 a machine; Ray's object store comes on top",
    ]


def test_an_elastic_run_whose_fewest_workers_are_too_few_is_refused():
    """It fits 8 GPUs of 80 GiB, and not the 2 that it may be left with."""
    done = dry_run("num_workers=[2,8]", "gradient_accumulation_steps=105")
    assert done.returncode == 1
    assert "--- on 2 GPUs ---" in done.stdout and "  together                94.0  of 80: DOES NOT FIT" in done.stdout
    assert "--- on 8 GPUs ---" in done.stdout and "  together                53.4  of 80: fits" in done.stdout
    assert done.stderr.startswith("dry run: latentomni-7b on 2 GPUs needs 94.0 GiB on every GPU, and there are 80. ")
    assert done.stderr.endswith("; num_workers=8 (53.4 GiB)\n")
    enough = dry_run("num_workers=[2,8]", "gradient_accumulation_steps=105", "dry_run.gpu_memory_gib=96")
    assert enough.returncode == 0, enough.stderr


def test_a_machine_without_the_memory_is_refused():
    done = dry_run("dry_run.host_memory_gib=256")
    assert done.returncode == 1
    assert done.stderr == (
        "dry run: latentomni-7b on 8 GPUs needs 281.6 GiB of host memory on a machine, and there are 256: fewer GPUs "
        "to a machine, or zero_stage=3\n"
    )


def test_the_toy_s_footprint_is_counted_on_its_real_weights():
    spec = importlib.util.spec_from_file_location("job_train_dry", ROOT / "jobs" / "train.py")
    assert spec and spec.loader
    job = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    config = load_config(job.CONFIG, ROOT / "jobs/configs/train/tiny_cpu.yaml")
    shape = longest_clip(config.task, text_tokens=512, num_phases=2)
    size = size_step(config.task, shape, batch_size=config.per_device_train_batch_size, value_bytes=4)
    module = build_task(config.task).module
    weights = sum(p.numel() for p in module.parameters())
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert (size.num_weights, size.num_exported, size.num_learning) == (weights, weights, learning)
    found = footprint_of(config, size, workers=2, gpus_per_node=8)
    assert found.checkpoint_bytes == 4 * weights + 12 * learning
    assert (found.num_checkpoints, found.num_exports) == (3, 3)
    assert found.export_bytes == 4 * weights
    # 128 grids of 4 visual tokens and 128 s of sound, 16 rows in each of three batches, beside the weights.
    rows = 16 * 4 * (512 * 4 * 2 * 14**2 * 3 + 128 * 25 * 4 * 128)
    assert found.host_bytes == pytest.approx(2 * (4 * weights + 3 * rows))


def test_data_that_cannot_be_read_from_here_stop_no_plan():
    """A laptop without the store's credentials, as a newcomer's: the preset as it stands in the README."""
    without = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none"}
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delenv(name, raising=False)
        for name, value in without.items():
            patch.setenv(name, value)
        done = dry_run("dataset_dir=s3://nowhere/rows", "dry_run.num_rows=36000")
    assert done.returncode == 0, done.stderr
    assert "note: s3://nowhere/rows cannot be read from here (NoCredentialsError: " in done.stdout
    assert "of 80: fits" in done.stdout


def test_the_adapters_fit_a_smaller_gpu():
    done = dry_run("dry_run.gpu_memory_gib=48", preset="latentomni_7b_lora")
    assert done.returncode == 0 and "of 48: fits" in done.stdout, done.stderr


def test_what_cannot_fit_ends_with_1_and_says_what_would_help():
    done = dry_run("task.gradient_checkpointing=false", "task.max_length=32768")
    assert done.returncode == 1
    assert "DOES NOT FIT" in done.stdout
    assert (
        "256 frames at full size has 37,072 positions; training refuses samples above max_length=32,768" in done.stdout
    )
    assert "What would make it fit: task.gradient_checkpointing=true (" in done.stderr
    assert "Traceback" not in done.stderr


def test_prepared_rows_are_as_long_as_the_method_makes_them(tmp_path):
    """Clip and words, and at every look markers and slots: none, one and two looks of two slots or of none."""
    part, frames = Part(), np.zeros((2, 28, 28, 3), np.uint8)
    part.add_clip("c", "c.mp4", DecodedClip(frames=frames, sample_fps=2.0, waveform=None, duration_s=1.0))
    for looks in range(3):
        steps = (TextStep(text="x"), *[LookStep(start_s=0.0, end_s=1.0)] * looks)
        sample = Sample(sample_id=f"s{looks}", clip_uri="c.mp4", question="q", answer="a", trajectory=steps)
        part.add_sample(sample, "c", length=100 + looks)
    write_part(str(tmp_path), part)
    write_card(tmp_path, Card(name="anchors"))
    for method, mean in (("latent_omni", 101 + 4), ("markers", 101 + 2), ("sft", 101)):
        options = ["task.options={num_visual: 1, num_audio: 1}"] if method == "latent_omni" else ["task.options={}"]
        done = dry_run(f"dataset_dir={tmp_path}", f"task.method={method}", *options, preset="tiny_cpu")
        assert done.returncode == 0, done.stderr
        assert f"{mean} a row" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["task.model_name_or_path=Someone/Else"], "the sizes of Someone/Else are not known"),
        (["dry_run.gpu_memory=80"], "unknown key 'gpu_memory'; did you mean 'gpu_memory_gib'?"),
        (["task.freeze=[eyes]"], "'task.freeze[0]' must be one of 'vision', 'audio', 'llm', 'heads', got 'eyes'"),
    ],
)
def test_mistakes_are_named(words, complaint):
    done = dry_run(*words)
    assert done.returncode == 1 and complaint in done.stderr and "Traceback" not in done.stderr
