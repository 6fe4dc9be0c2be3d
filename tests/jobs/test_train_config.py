"""A training job's config is checked as a whole before anything is loaded: every mistake by its place and its fix."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from omni_model.method_options import METHOD_OPTIONS, LatentOmniOptions
from omni_model.methods import METHODS, make_method
from omni_model.task import build_task
from omni_model.task_config import TaskConfig
from omni_platform.config import ConfigError, load_config, to_dict, to_yaml
from omni_platform.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
GIVEN = ["run_name=r", "dataset_dir=d", "output_dir=o"]


@cache
def _job(name: str = "train") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"job_{name}_test", ROOT / "jobs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look up their annotations there
    spec.loader.exec_module(module)
    return module


BAD = {
    # Typos, wherever they are.
    "task.metod=sft": "unknown key 'task.metod'; did you mean 'task.method'?",
    "task.options.num_visul=3": "unknown key 'task.options.num_visul'; did you mean 'task.options.num_visual'?",
    "task.num_visual=3": "unknown key 'task.num_visual'; did you mean 'task.options.num_visual'?",
    "learning_rat=1": "unknown key 'learning_rat'; did you mean 'learning_rate'?",
    "task.method=latentomni": "'task.method' must be one of 'latent_omni', 'pause', 'markers', 'text_cot', 'sft', got "
    "'latentomni' (did you mean 'latent_omni'?)",
    "task.method=sft task.options.num_visual=3": "unknown key 'task.options.num_visual'; known keys: none",
    "task.freeze=[eyes]": "'task.freeze[0]' must be one of 'vision', 'audio', 'llm', 'heads', got 'eyes'",
    "task.lr_scale.hads=2": "'task.lr_scale' must name one of 'vision', 'audio', 'llm', 'heads', got 'hads' "
    "(did you mean "
    "'heads'?)",
    "task.options.bottleneck=strickt": "'task.options.bottleneck' must be one of 'none', 'published', 'answer', "
    "'strict', "
    "got 'strickt' (did you mean 'strict'?)",
    # Values without sense.
    "learning_rate=-1": "'learning_rate' must be above 0, got -1.0",
    "learning_rate=nan": "'learning_rate' must be a finite number, got nan",
    "learning_rate=.inf": "'learning_rate' must be a finite number, got inf",
    "adam_beta1=2": "'adam_beta1' must be at least 0 and below 1, got 2.0",
    "adam_beta2=1": "'adam_beta2' must be at least 0 and below 1, got 1.0",
    "adam_epsilon=0": "'adam_epsilon' must be above 0, got 0.0",
    "weight_decay=-0.1": "'weight_decay' must be at least 0, got -0.1",
    "max_grad_norm=-1": "'max_grad_norm' must be at least 0, got -1.0",
    "run_name=..": "'run_name' must be a folder name: not empty, not '.' or '..', without slashes, control "
    "characters and "
    "blanks at its ends, got '..'",
    "run_name=a/b": "'run_name' must be a folder name: not empty, not '.' or '..', without slashes, control characters "
    "and blanks at its ends, got 'a/b'",
    "max_steps=10 warmup_steps=11": "warmup_steps=11 is longer than the run of max_steps=10",
    "warmup_ratio=1.2": "'warmup_ratio' must be at least 0 and at most 1, got 1.2",
    "warmup_steps=-1": "'warmup_steps' must be at least 0, got -1",
    "lr_scheduler_kwargs.min_lr_rate=0.1": "lr_scheduler_type cosine has no min_lr_rate in lr_scheduler_kwargs; "
    "it takes "
    "none",
    "lr_scheduler_type=polynomial lr_scheduler_kwargs.min_lr_rate=1.5": "min_lr_rate of lr_scheduler_kwargs is a share "
    "between 0 and 1, got 1.5",
    "metric_for_best_model=accuracy": "metric_for_best_model=accuracy is none of what an evaluation reports: "
    "loss, text, "
    "latent, sync",
    "task.method=sft metric_for_best_model=latent": "metric_for_best_model=latent is none of what an evaluation "
    "reports: "
    "loss, text",
    "per_device_train_batch_size=0": "'per_device_train_batch_size' must be at least 1, got 0",
    "per_device_eval_batch_size=0": "'per_device_eval_batch_size' must be at least 1, got 0",
    "save_steps=0": "'save_steps' must be at least 1, got 0",
    "save_total_limit=0": "'save_total_limit' must be at least 1, got 0",
    "num_train_epochs=-1": "'num_train_epochs' must be at least 0, got -1.0",
    "seed=-1": "'seed' must be at least 0 and below 4294967296, got -1",
    "max_failures=-2": "'max_failures' must be at least -1, got -2",
    "elastic_resize_monitor_interval_s=0": "'elastic_resize_monitor_interval_s' must be above 0, got 0.0",
    "resources_per_worker.CPU=-1": "'resources_per_worker' must be at least 0 under 'CPU', got {'CPU': -1.0}",
    "eval_steps=-500": "'eval_steps' must be at least 0, got -500",
    "eval_dataset_dir=e eval_steps=30 save_steps=20": "an evaluation reads a checkpoint: eval_steps=30 must be "
    "a multiple "
    "of save_steps=20",
    "engine=torch bf16=true": "the torch engine has no float32 copy for bf16; use engine=deepspeed or bf16=false",
    "zero_stage=4": "'zero_stage' must be one of 1, 2, 3, got 4",
    "num_workers=[3, 2]": "num_workers as a pair is [min, max] in this order, got 3, 2",
    "num_workers=0": "'num_workers' must be at least 1, got 0",
    "task.options.num_visual=-1": "'task.options.num_visual' must be at least 0, got -1",
    "task.options.num_visual=0 task.options.num_audio=0": "task.options: a phase needs at least one slot, got "
    "num_visual=0, "
    "num_audio=0; for a run without latents use method sft or text_cot",
    "task.options.latent_weight=-1": "'task.options.latent_weight' must be at least 0, got -1.0",
    "task.options.latent_weight=nan": "'task.options.latent_weight' must be a finite number, got nan",
    "task.options.latent_temperature=0": "'task.options.latent_temperature' must be above 0, got 0.0",
    "task.options.teacher_share=2": "'task.options.teacher_share' must be at least 0 and at most 1, got 2.0",
    "task.options.jacobi_sweeps=1": "'task.options.jacobi_sweeps' must be at least 2, got 1",
    "task.lora_rank=-1": "'task.lora_rank' must be at least 0, got -1",
    "task.lora_dropout=1": "'task.lora_dropout' must be at least 0 and below 1, got 1.0",
    "task.lora_rank=4 task.freeze=[llm]": "task: freeze names llm, where the adapters of lora_rank learn: take "
    "one of the "
    "two away",
    "task.lr_scale.heads=-1": "'task.lr_scale' must be at least 0 under 'heads', got {'heads': -1.0}",
    "task.fps=0": "'task.fps' must be above 0, got 0.0",
    "task.max_length=0": "'task.max_length' must be at least 1, got 0",
    "task.video_min_pixels=5000": "task: video_min_pixels=5000 is above video_max_pixels=3136",
}  # fmt: skip


def _words(line: str) -> list[str]:
    """Cut at blanks that a key follows: values may hold blanks themselves."""
    return re.split(r" (?=[\w.]+=)", line)


@pytest.mark.parametrize("line", BAD)
def test_a_bad_value_is_named_with_its_place_and_its_fix(line):
    with pytest.raises(ConfigError) as error:
        load_config(_job().CONFIG, None, [*GIVEN, *_words(line)])
    assert str(error.value) == f"the command line: {BAD[line]}"


DATA = "data.manifest=m data.output_dir=o"


@pytest.mark.parametrize(
    ("job", "given", "word", "message"),
    [
        ("preprocess", DATA, "data.fps=0", "'data.fps' must be above 0, got 0.0"),
        ("preprocess", DATA, "data.fps=nan", "'data.fps' must be a finite number, got nan"),
        ("preprocess", DATA, "data.fps_max_frames=1", "'data.fps_max_frames' must be at least "
         "2, got 1"),
        ("preprocess", DATA, "data.num_encoders=0", "'data.num_encoders' must be at least 1, "
         "got 0"),
        ("evaluate", "model=m dataset_dir=d output_dir=o", "batch_size=0", "'batch_size' must be at least 1, got 0"),
        ("film", "output_dir=o", "hiss=-.inf", "'hiss' must be a finite number, got -inf"),
        ("film", "output_dir=o", "num_shots=25", "'num_shots' must be at least 1 and at most 24, got 25"),
        ("sweep", "output_dir=o", "trial.learning_rate=nan", "'trial.learning_rate' must be a finite number, got nan"),
        ("sweep", "output_dir=o", "seeds=[0,-1]", "'seeds' must be at least 0, got (0, -1)"),
        ("serve", "model=m", "batch_wait_s=nan", "'batch_wait_s' must be a finite number, got nan"),
    ],
)  # fmt: skip
def test_every_other_job_is_held_to_its_bounds_in_the_same_words(job, given, word, message):
    with pytest.raises(ConfigError) as error:
        load_config(_job(job).CONFIG, None, [*given.split(), word])
    assert str(error.value) == f"the command line: {message}"


def test_the_place_is_the_one_that_gave_this_very_key(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("run_name: r\ndataset_dir: d\noutput_dir: o\nmax_steps: 10\ntask: {method: pause}\n")

    def message(*words: str) -> str:
        with pytest.raises(ConfigError) as error:
            load_config(_job().CONFIG, file, words)
        return str(error.value)

    assert message("adam_beta1=2").startswith("the command line: 'adam_beta1'")
    assert message("task.options.num_visul=1").startswith("the command line: unknown key 'task.options.num_visul'")
    assert message("task={method: pausee}").startswith("the command line: 'task.method' must be one of")
    assert message("warmup_steps=11") == (
        f"{file} and the command line: warmup_steps=11 is longer than the run of max_steps=10"
    )
    file.write_text("run_name: r\ndataset_dir: d\noutput_dir: o\ntask: {method: pause, options: {num_audo: 1}}\n")
    assert message("seed=1") == (f"{file}: unknown key 'task.options.num_audo'; did you mean 'task.options.num_audio'?")
    # The file's method and an option of another method from the command line.
    file.write_text("run_name: r\ndataset_dir: d\noutput_dir: o\ntask: {method: pause}\n")
    assert message("task.options.latent_weight=1") == (
        "the command line: unknown key 'task.options.latent_weight'; known keys: num_visual, num_audio, "
        "max_train_phases, "
        "words, ospe, segment_s, bottleneck, norm_match"
    )


def _run(*words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "jobs/train.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done, time.monotonic() - started


CHECKED_WITHOUT = """
import runpy, sys
sys.argv = ["jobs/train.py", "--config", "jobs/configs/train/latentomni_7b.yaml", "task.options.num_visul=3"]
try:
    runpy.run_path("jobs/train.py", run_name="__main__")
except SystemExit as end:
    print(end.code)
print(sorted({"torch", "ray", "mlflow", "transformers", "deepspeed"} & set(sys.modules)))
"""


def test_a_typo_is_named_within_a_second_and_before_torch_or_ray_are_loaded():
    done = subprocess.run([sys.executable, "-c", CHECKED_WITHOUT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "config error: the command line: unknown key 'task.options.num_visul'; did you mean 'task.options.num_visual'?",
        "[]",
    ]
    words = ("--config", "jobs/configs/train/latentomni_7b.yaml", "task.options.num_visul=3")
    fastest = min(_run(*words)[1] for _ in range(5))  # of several: other processes may share the cores
    assert fastest < 1.0, f"{fastest:.2f} s"


def test_help_lists_every_field_of_the_task_and_of_each_method():
    text = _run("--help")[0].stdout
    for part in ("  task.model_name_or_path: str = 'tiny'", "  with task.method=latent_omni:",
                 "  task.options.latent_weight: float, at least 0 = 0.005", "lambda 1 of Eq. 7.",
                 "  with task.method=sft: no options", "  with task.method=pause:",
                 "  adam_beta1: float, at least 0 and below 1 = 0.9"):  # fmt: skip
        assert part in text, part
    pause = _run("--help", "task.method=pause")[0].stdout
    assert "with task.method=pause:" in pause and "task.options.norm_match: bool = False" in pause
    assert "latent_weight" not in pause and "task.method=sft" not in pause
    by_file = _run("--config", "jobs/configs/train/sft_7b.yaml", "--help")[0].stdout
    assert "with task.method=sft: no options" in by_file and "latent_weight" not in by_file


def test_the_task_that_workers_build_is_the_one_that_was_checked(tmp_path):
    words = [*GIVEN, "task.options.num_visual=2", "task.options.engine=jacobi", "task.lr_scale.heads=10"]
    config = load_config(_job().CONFIG, None, words)
    assert config.task == TaskConfig(options=LatentOmniOptions(num_visual=2, engine="jacobi"), lr_scale={"heads": 10.0})
    expected = make_method("latent_omni", {"num_visual": 2, "engine": "jacobi"})
    assert make_method(config.task.method, config.task.options) == expected
    assert build_task(config.task).config is config.task
    # What travels to workers is made of classes that they can import, and can be changed there.
    sent = pickle.loads(pickle.dumps(_job().importable(config)))
    assert type(sent) is TrainConfig and sent.task == config.task
    assert replace(sent, output_dir="elsewhere").task is sent.task
    # What a tracker and a checkpoint keep are plain values, which read back to the same.
    assert to_dict(config)["task"]["options"]["num_visual"] == 2
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(_job().CONFIG, tmp_path / "again.yaml") == config


def test_options_and_methods_are_the_same_list():
    assert METHOD_OPTIONS.keys() == METHODS.keys()
    for name, options in METHOD_OPTIONS.items():
        assert issubclass(METHODS[name], options)
        assert tuple(make_method(name).weights) == options.loss_names
