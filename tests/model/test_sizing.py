"""Sizes told from a config alone, held against the weights and the bytes that are really there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from stored_segments import stored

from omni_model.sequence import Kind
from omni_model.sizing import RowShape, longest_clip, read_thinker_config, size_step
from omni_model.task import ReasoningTask, build_task
from omni_platform.schema import LookStep, Sample, SegmentFeatures, TextStep

SEVEN_B = "Qwen/Qwen2.5-Omni-7B"
ROW = RowShape(length=1000, text_tokens=100, num_phases=1, visual_share=0.7, audio_share=0.1)


@dataclass
class Row:
    sample: Sample
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray
    anchors: tuple[SegmentFeatures, ...]
    other_anchors: tuple[SegmentFeatures, ...]


@pytest.fixture(scope="module")
def row() -> Row:
    """24 seconds, two looks: about 1,100 positions."""
    rng = np.random.default_rng(0)
    looks = [LookStep(start_s=s, end_s=s + 2.0) for s in (0.0, 4.0)]
    steps = (TextStep(text="The tone:"), *looks, TextStep(text=" Answer: green"))
    return Row(
        sample=Sample(sample_id="s", clip_uri="c.mp4", question="Which colour?", answer="green", trajectory=steps),
        frames=rng.integers(0, 255, (48, 112, 112, 3), dtype=np.uint8),
        sample_fps=2.0,
        waveform=rng.normal(0, 0.1, 24 * 16_000).astype(np.float32),
        other_anchors=(),
        anchors=stored(np.zeros((2, 40, 96), np.float32), 32),
    )


def _bytes_kept(task: ReasoningTask, row: Row) -> tuple[int, RowShape]:
    """What the forward pass of one row leaves for the backward pass, each storage once, and the row's shape."""
    batch = task.collate([row])
    weights = {p.untyped_storage().data_ptr() for p in task.module.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its address would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.module.train()(batch)
    length = batch.kinds_BL.shape[1]
    shape = RowShape(
        length=length,
        text_tokens=int((batch.labels_BL >= 0).sum()),
        num_phases=2,
        visual_share=int((batch.kinds_BL == Kind.VISUAL).sum()) / length,
        audio_share=int((batch.kinds_BL == Kind.AUDIO).sum()) / length,
    )
    return sum(size for size, _ in kept.values()), shape


@pytest.mark.parametrize("engine", ["teacher_parallel", "recurrent", "jacobi", "two_pass"])
@pytest.mark.parametrize("freeze", [["vision"], []])
def test_activations_are_estimated_within_a_quarter(row, engine, freeze):
    options = {"num_visual": 32, "num_audio": 8, "sync_weight": 0, "engine": engine}
    config = {"options": options, "freeze": freeze}
    measured, shape = _bytes_kept(build_task(config), row)
    size = size_step(config, shape, batch_size=1, value_bytes=4)
    assert (size.activation_bytes + size.rollout_bytes) / measured == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("engine", ["recurrent", "jacobi", "two_pass"])
def test_a_rollout_adds_its_keys_and_values(row, engine):
    options = {"num_visual": 32, "num_audio": 8, "sync_weight": 0}
    (parallel, shape), (own, _) = (
        _bytes_kept(build_task({"options": {**options, "engine": name}}), row) for name in ("teacher_parallel", engine)
    )
    size = size_step({"options": {**options, "engine": engine}}, shape, batch_size=1, value_bytes=4)
    assert size.rollout_bytes / (own - parallel) == pytest.approx(1.0, abs=0.35)


def test_pause_tokens_wait_for_nothing():
    """Their slots are known beforehand: one pass, as in teacher forcing."""
    options = {"num_visual": 32, "num_audio": 8}
    size = size_step({"method": "pause", "options": options}, ROW, batch_size=1, value_bytes=4)
    assert (size.rollout_bytes, size.passes_in_a_row) == (0.0, 0)
    assert size_step({"options": options}, ROW, batch_size=1, value_bytes=4).passes_in_a_row == 40


@pytest.mark.parametrize("engine", ["teacher_parallel", "recurrent"])
def test_recomputing_leaves_what_enters_the_layers_and_one_layer_at_its_turn(row, engine):
    options = {"num_visual": 32, "num_audio": 8, "sync_weight": 0, "engine": engine}
    config = {"options": options, "gradient_checkpointing": True}
    measured, shape = _bytes_kept(build_task(config), row)
    size = size_step(config, shape, batch_size=1, value_bytes=4)
    estimated = size.recomputed_bytes + size.rollout_bytes
    assert measured < estimated < measured + size.activation_bytes / 2
    assert estimated < size.activation_bytes / 2


@pytest.mark.parametrize(
    "config", [{}, {"freeze": []}, {"lora_rank": 4}, {"lora_rank": 8, "lora_target": ["q_proj"]}, {"method": "sft"}]
)
def test_weights_are_counted_as_they_are(config):
    config = {"options": {"num_visual": 2, "num_audio": 1} if config.get("method") != "sft" else {}, **config}
    task = build_task(config)
    size = size_step(config, ROW, batch_size=1, value_bytes=4)
    assert size.num_weights == sum(p.numel() for p in task.module.parameters())
    assert size.num_learning == sum(p.numel() for p in task.module.parameters() if p.requires_grad)


def test_the_7b_model_has_its_published_sizes_without_its_weights():
    size = size_step({"model_name_or_path": SEVEN_B, "method": "sft"}, ROW, batch_size=1, value_bytes=2)
    # The Thinker of the published checkpoint: 7.62 B in language model and head, 0.68 B and 0.64 B in the towers.
    assert size.num_weights == 8_931_813_888
    assert size.llm_weights == 28 * 233_057_792
    assert size.num_weights - size.num_learning == pytest.approx(0.676e9, rel=0.01)  # vision is frozen


def test_what_a_step_does_grows_as_it_should():
    config = {"model_name_or_path": SEVEN_B, "method": "sft"}
    one = size_step(config, ROW, batch_size=1, value_bytes=2)
    two = size_step(config, ROW, batch_size=2, value_bytes=2)
    for name in ("activation_bytes", "recomputed_bytes", "flops", "recomputing_flops"):
        assert getattr(two, name) == pytest.approx(2 * getattr(one, name))
    # 6 operations a weight and position where all learns, 4 where adapters do; the towers and attention come on top.
    assert one.flops / (6 * one.llm_weights * ROW.length) == pytest.approx(1.17, abs=0.05)
    lora = size_step({**config, "lora_rank": 16}, ROW, batch_size=1, value_bytes=2)
    assert 0.6 < lora.flops / one.flops < 0.75
    assert lora.num_learning < 0.01 * lora.num_weights


def test_the_longest_clip_follows_the_frames():
    config = {
        "fps_max_frames": 256,
        "fps": 2.0,
        "video_max_pixels": 200_704,
        "options": {"num_visual": 32, "num_audio": 8},
    }
    shape = longest_clip(config, text_tokens=512, num_phases=2)
    assert (shape.visual_tokens, shape.audio_tokens) == (128 * 256, pytest.approx(128 * 25))
    assert shape.length == 128 * 256 + 128 * 25 + 2 * 512 + 2 * 40
    mute = longest_clip({**config, "use_audio_in_video": False}, text_tokens=512, num_phases=2)
    assert shape.length - mute.length == 128 * 25


def test_a_model_whose_sizes_nobody_knows_is_named():
    with pytest.raises(ValueError, match=r"sizes of Someone/Else are not known: give .* Qwen/Qwen2.5-Omni-7B"):
        read_thinker_config("Someone/Else")
