"""The size of a row, told from the shape of its clip, is that of the sequence that training lays out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored_segments import Row, stored

from omni_model.anchors import AnchorEncoder
from omni_model.folder import Preparation, save_folder
from omni_model.lengths import media_of_shape
from omni_model.methods import make_method
from omni_model.prompt import prompt_template
from omni_model.sequence import IGNORE, prepare_media
from omni_model.task import build_task
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import LookStep, Sample, TextStep

METHODS = {
    "latent_omni": {"num_visual": 5, "num_audio": 2, "max_train_phases": 5},
    "pause": {"num_visual": 4, "num_audio": 0, "max_train_phases": 5},
    "markers": {"max_train_phases": 5},
    "text_cot": {"times": True},
    "sft": {},
}


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder: Path = tmp_path_factory.mktemp("base")
    method = make_method("sft")
    heads = method.build_heads(64)
    save_folder(folder, backbone=backbone, tokenizer=tokenizer, method=method, heads=heads, preparation=Preparation())
    return str(folder)


@pytest.fixture(scope="module")
def task_of(base):
    """`task_of(method, **settings)`."""

    def make(method: str, **settings):
        shared = {"model_name_or_path": base, "method": method, "options": METHODS[method]}
        return build_task({**shared, "system_prompt": "You listen well.", **settings})

    return make


def clip(*, shots: int = 3, fps: float = 2.0, side_px: int = 56, sound: bool = True) -> dict:
    scene = make_scene(seed=3, index=shots, num_shots=shots)
    frames = render_frames(scene, times_s=np.arange(round(shots * fps)) / fps, side_px=side_px)
    return {"frames": frames, "sample_fps": fps, "waveform": render_waveform(scene) if sound else None}


def row_of(sample: Sample, shape: dict) -> Row:
    content = clip(**shape)
    block = np.zeros((len(sample.looks), 7, 64), np.float32)
    return Row(sample, **content, anchors=stored(block, 5))


@pytest.mark.parametrize("looks", [1, 2, 5])
@pytest.mark.parametrize(
    "shape", [{}, {"shots": 5, "fps": 3.0}, {"side_px": 112}, {"sound": False}, {"shots": 4, "fps": 0.75}]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_as_long_as_its_plan_and_counts_what_its_batch_counts(task_of, sample_with, method, shape, looks):
    task, row = task_of(method), row_of(sample_with(looks), shape)
    size, plan = task.size(row), task.plan(row)
    assert size.length == len(plan)
    assert size.counts["text"] == int((plan.labels != IGNORE).sum())
    if looks <= 2:  # what a forward pass finds, the sync segments among it
        out = task.module.train()(task.collate([row]))
        assert dict(size.counts) == {name.removeprefix("count/"): int(out[name]) for name in out if "/" in name}


def test_a_method_measures_its_own_sequence(task_of, sample_with):
    row = row_of(sample_with(3), {})
    lengths = {method: task_of(method).size(row).length for method in METHODS}
    assert lengths["latent_omni"] - lengths["markers"] == 3 * (5 + 2)
    assert lengths["pause"] - lengths["markers"] == 3 * 4
    assert lengths["sft"] < lengths["markers"]


def test_settings_of_the_task_count(task_of, sample_with):
    row = row_of(sample_with(1), {})
    whole = task_of("sft").size(row).length
    assert task_of("sft", use_audio_in_video=False).size(row).length == len(
        task_of("sft", use_audio_in_video=False).plan(row)
    )
    assert task_of("sft", system_prompt="").size(row).length < whole
    by_sample = task_of("sft", text_loss_reduction="sample_mean").size(row)
    assert dict(by_sample.counts) == {"text": 1}


def test_what_the_method_cannot_take_is_refused_with_the_reason(task_of, sample_with):
    row = row_of(sample_with(2, sample_id="row-7"), {})
    length = task_of("sft").size(row).length
    with pytest.raises(ValueError, match=f"sample row-7 has {length} positions, more than max_length={length - 1}"):
        task_of("sft", max_length=length - 1).size(row)
    assert task_of("sft", max_length=length).size(row).length == length
    with pytest.raises(ValueError, match="sample row-7 has 2 looks; latent_omni takes 1 to 1"):
        task_of("latent_omni", options={"max_train_phases": 1}).size(row)


def test_slots_that_do_not_divide_the_bins_are_refused_at_load_by_methods_that_read_anchors(task_of, sample_with):
    row = replace(row_of(sample_with(1), {}), pooled_bins=(None, 32))
    for method in METHODS:
        options = {"num_visual": 5, "num_audio": 3} if "num_visual" in METHODS[method] else {}
        task = task_of(method, options=options)
        if method == "latent_omni":
            with pytest.raises(ValueError, match="stored in 32 bins, which give 1, 2, 4, 8, 16, 32 slots and not 3"):
                task.size(row)
        else:
            assert task.size(row).length == len(task.plan(row))


def test_preprocessing_measures_clip_and_words_alone(backbone, tokenizer, vocabulary, task_of, sample_with):
    encoder = AnchorEncoder(
        backbone=backbone,
        preparation=Preparation(prompt=prompt_template("open", system_prompt="You listen well.")),
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        fingerprint="toy",
    )
    row = row_of(sample_with(3), {})
    content = {"frames": row.frames, "sample_fps": row.sample_fps, "waveform": row.waveform}
    markers = task_of("markers").size(row).length
    assert encoder.length(row.sample, **content) == markers - 3 * 2
    steps = tuple(step for step in row.sample.trajectory if isinstance(step, LookStep))
    bare = replace(row.sample, trajectory=steps)
    assert encoder.length(bare, **content) == task_of("sft").size(row).length
    words = replace(row.sample, trajectory=(TextStep(text="The low tone: red. Answer: red"),))
    assert encoder.length(words, **content) == task_of("text_cot").size(replace(row, sample=words)).length


def test_sound_is_counted_as_it_is_prepared():
    """To the audio token, whatever is left over at the end of the sound."""
    frames = np.zeros((2, 56, 56, 3), np.uint8)
    rng = np.random.default_rng(0)
    for samples in [0, 1, 320, 321, 16_000, 16_001, *rng.integers(1, 70_000, 200).tolist()]:
        made = prepare_media(frames, sample_fps=2.0, waveform=np.zeros(samples, np.float32))
        shape = media_of_shape((2, 56, 56), sample_fps=2.0, num_samples=samples)
        assert shape.mel.shape == made.mel.shape, samples
    assert media_of_shape((2, 56, 56), sample_fps=2.0, num_samples=4_800_001).num_audio_tokens == 7500


def test_options_count_in_the_length(task_of, sample_with, tokenizer):
    few = row_of(sample_with(1), {})
    options = ("red", "green", "blue", "a colour that is long to say")
    many = replace(few, sample=replace(few.sample, options=options))
    more = tokenizer("\nD. a colour that is long to say", add_special_tokens=False)["input_ids"]
    for method in METHODS:
        task = task_of(method, prompt="lettered")
        assert task.size(many).length - task.size(few).length == len(more) > 5
        assert task.size(many).length == len(task.plan(many))
