"""The length of a sample as preprocessing tells it is the length of the sequence that training lays out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from omni_model.anchors import AnchorEncoder
from omni_model.folder import Preparation
from omni_model.lengths import media_of_shape
from omni_model.methods import make_method
from omni_model.prompt import prompt_template
from omni_model.sequence import PlanBuilder, prepare_media
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import TextStep

TEMPLATE = prompt_template("lettered", system_prompt="You listen well.")


@pytest.fixture(scope="module")
def measure(backbone, tokenizer, vocabulary):
    encoder = AnchorEncoder(
        backbone=backbone,
        preparation=Preparation(prompt=TEMPLATE),
        num_visual=5,
        num_audio=2,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        fingerprint="toy",
    )
    return encoder.length


@pytest.fixture(scope="module")
def planned(tokenizer, vocabulary):
    def count(sample, method, *, frames, sample_fps, waveform) -> int:
        media = prepare_media(frames, sample_fps=sample_fps, waveform=waveform)
        builder = PlanBuilder(tokenizer, vocabulary, media, template=TEMPLATE)
        builder.chat_prompt(sample.question, sample.options)
        method.write(builder, sample)
        return len(builder.build())

    return count


def clip(*, shots: int = 3, fps: float = 2.0, side_px: int = 56, sound: bool = True) -> dict:
    scene = make_scene(seed=3, index=shots, num_shots=shots)
    frames = render_frames(scene, times_s=np.arange(round(shots * fps)) / fps, side_px=side_px)
    return {"frames": frames, "sample_fps": fps, "waveform": render_waveform(scene) if sound else None}


@pytest.mark.parametrize("looks", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "shape", [{}, {"shots": 5, "fps": 3.0}, {"side_px": 112}, {"sound": False}, {"shots": 4, "fps": 0.75}]
)
def test_a_latent_sample_is_as_long_as_its_plan(measure, planned, sample_with, looks, shape):
    sample, content = sample_with(looks), clip(**shape)
    method = make_method("latent_omni", {"num_visual": 5, "num_audio": 2, "max_train_phases": 5})
    assert measure(sample, **content) == planned(sample, method, **content)


def test_every_look_costs_its_slots_and_two_markers(measure, sample_with):
    content = clip()
    trajectory = sample_with(3).trajectory
    without = replace(sample_with(3), trajectory=tuple(s for s in trajectory if isinstance(s, TextStep)))
    assert measure(sample_with(3), **content) - measure(without, **content) == 3 * (5 + 2 + 2)


def test_samples_without_looks_are_measured_as_the_methods_without_latents_write_them(measure, planned, sample_with):
    content = clip()
    words = replace(sample_with(1), trajectory=(TextStep(text="The low tone: green. Answer: green"),))
    assert measure(words, **content) == planned(words, make_method("text_cot"), **content)
    bare = replace(sample_with(1), trajectory=())
    assert measure(bare, **content) == planned(bare, make_method("sft"), **content)


def test_sound_is_counted_as_it_is_prepared():
    """To the audio token, whatever is left over at the end of the sound."""
    frames = np.zeros((2, 56, 56, 3), np.uint8)
    rng = np.random.default_rng(0)
    for samples in [0, 1, 320, 321, 16_000, 16_001, *rng.integers(1, 70_000, 200).tolist()]:
        made = prepare_media(frames, sample_fps=2.0, waveform=np.zeros(samples, np.float32))
        shape = media_of_shape((2, 56, 56), sample_fps=2.0, num_samples=samples)
        assert shape.mel.shape == made.mel.shape, samples
    assert media_of_shape((2, 56, 56), sample_fps=2.0, num_samples=4_800_001).num_audio_tokens == 7500


def test_options_count_in_the_length(measure, planned, sample_with, tokenizer):
    content, method = clip(), make_method("latent_omni", {"num_visual": 5, "num_audio": 2})
    few, many = (
        sample_with(1),
        replace(sample_with(1), options=("red", "green", "blue", "a colour that is long to say")),
    )
    more = tokenizer("\nD. a colour that is long to say", add_special_tokens=False)["input_ids"]
    assert measure(many, **content) - measure(few, **content) == len(more) > 5
    assert measure(many, **content) == planned(many, method, **content)
