"""A multiple-choice question is one and the same prompt in training, evaluation and serving, options and all."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml

import omni_model.reason
import omni_model.sitting
from omni_model.anchors import AnchorEncoder
from omni_model.examine import OWN, Examiner
from omni_model.folder import Preparation, load_folder, save_folder
from omni_model.methods import make_method
from omni_model.prompt import PromptName, prompt_template
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.reason import Reasoner, load_reasoner
from omni_model.sequence import IGNORE, Plan
from omni_model.task import build_task
from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import read_vocabulary
from omni_platform.config import load_config
from omni_platform.media.decode import decode_clip
from omni_platform.media.film import corpus
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import write_mp4
from omni_platform.runtime import start_ray
from omni_platform.schema import Sample, TextStep
from omni_serving.app import bind_app
from omni_serving.config import ServeConfig
from omni_serving.deploy import deployed

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROOT = Path(__file__).parents[2]
SAMPLE = Sample(
    sample_id="q",
    clip_uri="clip.mp4",
    question="Which colour is on screen when the low tone sounds?",
    answer="green",
    options=("red", "green", "light blue"),
    trajectory=(TextStep(text="The tone: low. Answer: green"),),
)
SYSTEM = "You listen well."


@dataclass
class Row:
    sample: Sample
    clip_id: str
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    anchors: np.ndarray
    other_anchors: np.ndarray


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_mp4(make_scene(seed=3, index=0), path)
    return path


@pytest.fixture(scope="module")
def row(clip) -> Row:
    decoded = decode_clip(clip, fps=2.0, max_frames=16)
    none = np.zeros((0, 6, 192), np.float32)
    return Row(SAMPLE, "clip", decoded.frames, decoded.sample_fps, decoded.waveform, none, none)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(corpus())
    backbone = QwenOmniBackbone(build_tiny(TinyConfig(), read_vocabulary(tokenizer)))
    method = make_method("sft")
    heads = method.build_heads(backbone.width)
    save_folder(folder, backbone=backbone, tokenizer=tokenizer, method=method, heads=heads, preparation=Preparation())
    return folder


def _trained(base: Path, row: Row, folder: Path, prompt: PromptName) -> list[int]:
    """Export a model whose task asks in this way; returns the prompt of a row as training lays it out."""
    # Frames at the decoder's size would be resized for evaluation and serving, and come prepared to training.
    side = {"video_min_pixels": 56 * 56, "video_max_pixels": 56 * 56}
    options = {"model_name_or_path": str(base), "method": "text_cot", "prompt": prompt, "system_prompt": SYSTEM}
    task = build_task({**options, **side, "fps_max_frames": 16})
    task.export(folder)
    plan = task.plan(replace(row, frames=_encoder(folder).prepare_frames(row.frames)))
    first = int((plan.labels != IGNORE).nonzero()[0])
    return plan.input_ids[:first].tolist()


def _encoder(folder: Path) -> AnchorEncoder:
    exported = load_folder(folder)
    return AnchorEncoder(
        backbone=exported.loaded.backbone,
        preparation=exported.preparation,
        tokenizer=exported.loaded.tokenizer,
        vocabulary=exported.loaded.vocabulary,
        fingerprint="",
    )


def _kept(generate: Callable, file: Path) -> Callable:
    """`generate` that writes down the tokens of the prompts it is given."""

    def call(*args, **options):
        plans: list[Plan] = args[4]
        file.write_text(json.dumps([plan.input_ids.tolist() for plan in plans]))
        return generate(*args, **options)

    return call


def _evaluated(folder: Path, row: Row, file: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(omni_model.sitting, "generate", _kept(omni_model.sitting.generate, file))
    records = Examiner(str(folder), conditions=(OWN,), max_new_tokens=2, device="cpu")([row])
    assert records[0]["options"] == list(SAMPLE.options)
    [prompt] = json.loads(file.read_text())
    return prompt


def _served(folder: Path, clip: Path, file: Path) -> tuple[list[int], int]:
    """The prompt that a request becomes in a replica, and how many tokens the reply says it has."""

    def load(path: Path) -> Reasoner:
        omni_model.reason.generate = _kept(omni_model.reason.generate, file)
        return load_reasoner(path, device="cpu")

    config = ServeConfig(
        model=str(folder), port=_free_port(), allowed_media_dirs=(str(clip.parent),), max_new_tokens=2, device="cpu"
    )
    content = [{"type": "video_url", "video_url": {"url": str(clip)}}, {"type": "text", "text": SAMPLE.question}]
    body = {"messages": [{"role": "user", "content": content}], "options": list(SAMPLE.options)}
    start_ray(num_cpus=2, object_store_memory_bytes=200_000_000)
    try:
        with deployed(config, bind_app(config, load)) as url:
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                reply = json.loads(response.read())
    finally:
        ray.shutdown()
    [prompt] = json.loads(file.read_text())
    return prompt, reply["usage"]["prompt_tokens"]


@pytest.mark.parametrize("prompt", ["lettered", "open"])
def test_training_evaluation_and_serving_put_one_question_alike(base, row, clip, tmp_path, monkeypatch, prompt) -> None:
    folder = tmp_path / "model"
    trained = _trained(base, row, folder, prompt)
    exported = load_folder(folder)
    assert exported.preparation.prompt == prompt_template(prompt, system_prompt=SYSTEM)
    text = exported.loaded.tokenizer.decode(trained)
    asked = f"{SAMPLE.question}<|im_end|>\n<|im_start|>assistant\n"
    if prompt == "lettered":
        options = 'A. red\nB. green\nC. light blue\nEnd with "Answer: " and the letter of the right option.'
        asked = asked.replace("<|im_end|>", f"\n{options}<|im_end|>", 1)
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_bos|>")
    assert text.endswith(f"<|vision_eos|>{asked}")
    assert _evaluated(folder, row, tmp_path / "evaluated.json", monkeypatch) == trained
    if prompt == "lettered":  # a server takes its time to start
        served, reported = _served(folder, clip, tmp_path / "served.json")
        assert served == trained
        assert reported == len(trained)
    # What preprocessing counts is this prompt and the words behind it.
    frames = _encoder(folder).prepare_frames(row.frames)
    length = _encoder(folder).length(SAMPLE, frames=frames, sample_fps=row.sample_fps, waveform=row.waveform)
    words = "The tone: low. Answer: " + ("B" if prompt == "lettered" else "green")
    spelled = exported.loaded.tokenizer(words, add_special_tokens=False)["input_ids"]
    assert length == len(trained) + len(spelled) + 1


def test_preprocessing_counts_the_prompt_that_its_config_names() -> None:
    spec = importlib.util.spec_from_file_location("preprocess_of_test_prompts", ROOT / "jobs" / "preprocess.py")
    assert spec is not None and spec.loader is not None
    job_module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = job_module
    spec.loader.exec_module(job_module)
    job = load_config(job_module.PreprocessJob, ROOT / "jobs/configs/preprocess/omni_7b.yaml")
    expected = prompt_template("lettered", system_prompt="You are a helpful AVQA expert.")
    assert job_module._encoder_builder(job).keywords["preparation"].prompt == expected


def test_the_presets_of_the_real_model_ask_with_letters_and_those_of_the_toy_openly() -> None:
    asked = {
        file.name: (task.get("prompt", "open"), task.get("system_prompt", ""))
        for file in (ROOT / "jobs/configs/train").glob("*.yaml")
        if (task := yaml.safe_load(file.read_text()).get("task"))
    }
    with_letters = ("lettered", "You are a helpful AVQA expert.")
    real = dict.fromkeys(
        ("latentomni_7b.yaml", "latentomni_7b_lora.yaml", "sft_7b.yaml", "text_cot_7b.yaml"), with_letters
    )
    assert asked == real | {"tiny_cpu.yaml": ("open", "")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
