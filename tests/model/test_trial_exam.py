"""A trial is examined as an exported model is: the same answers under every condition, from encoded clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stored_segments import stored

from omni_model.encoded import EncodedQuestions, RawClip, encode_clips
from omni_model.examine import ALL_CONDITIONS, Examiner
from omni_model.folder import Loaded, Preparation, save_folder
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.probes import BLIND
from omni_model.sequence import EncodedClip
from omni_model.trial_exam import ExamConfig, examine_trial
from omni_platform.data.batches import TrainingRow

FIVE = {"num_visual": 3, "num_audio": 2, "bottleneck": "none"}
METHODS = {
    "sft": ("sft", {}),
    "markers": ("markers", {"bottleneck": "answer"}),
    "pause": ("pause", FIVE),
    "latent_omni": ("latent_omni", {**FIVE, "feedback": "linear", "norm_match": True}),
    "jacobi": ("latent_omni", {**FIVE, "norm_match": True, "engine": "jacobi", "jacobi_sweeps": 3}),
}
EXAM = ExamConfig(conditions=ALL_CONDITIONS, max_new_tokens=8, max_phases=2)
ONLY_EXPORTED = {"looked_right", "moments"}
"""What is read off the latents' nearest moments of the whole clip, in evaluation alone."""


@pytest.fixture(scope="module")
def encoded(talker, raw_clips) -> list[EncodedQuestions]:
    return encode_clips(talker, raw_clips)


@pytest.fixture(scope="module")
def blanks(talker, encoded, raw_clips) -> dict[tuple[int, int, int], EncodedClip]:
    dark = [
        RawClip(
            clip_id="",
            frames=np.zeros_like(raw.frames),
            sample_fps=raw.sample_fps,
            waveform=np.zeros_like(raw.waveform),
            samples=(),
        )
        for raw in raw_clips
    ]
    return {blank.clip.grid_thw: blank.clip for blank in encode_clips(talker, dark)}


@pytest.fixture(scope="module")
def learner_of(talker, tokenizer, vocabulary):
    """`learner_of(name)`: what a trial leaves, with its base."""

    def make(name: str) -> tuple[Loaded, Learner]:
        kind, options = METHODS[name]
        torch.manual_seed(0)
        loaded = Loaded(backbone=talker, tokenizer=tokenizer, vocabulary=vocabulary)
        return loaded, Learner(talker, make_method(kind, options)).train()

    return make


def _rows(raw_clips, encoded, method) -> list[TrainingRow]:
    rows = []
    for raw, clip in zip(raw_clips, encoded, strict=True):
        by_span = clip.segments.anchors(num_visual=method.num_visual, num_audio=method.num_audio)
        for sample in raw.samples:
            anchors = np.stack([by_span[look.start_s, look.end_s].numpy() for look in sample.looks])
            segments = stored(anchors, method.num_visual), ()
            of_row = {"sample": sample, "read_segments": lambda segments=segments: segments}
            of_clip = {"frames": raw.frames, "waveform": raw.waveform, "sample_fps": raw.sample_fps}
            rows.append(TrainingRow(clip_id=raw.clip_id, **of_row, **of_clip))
    return rows


@pytest.mark.parametrize("name", METHODS)
def test_every_condition_has_the_answers_of_an_exported_model(
    learner_of, raw_clips, encoded, blanks, tokenizer, tmp_path, name
):
    loaded, learner = learner_of(name)
    records = examine_trial(loaded, learner, encoded, EXAM, blanks=blanks)
    preparation = Preparation()
    shared = {"tokenizer": tokenizer, "method": learner.method, "heads": learner.heads, "preparation": preparation}
    save_folder(tmp_path, backbone=loaded.backbone, **shared)
    limits = {"conditions": ALL_CONDITIONS, "max_new_tokens": 8, "max_phases": 2, "device": "cpu"}
    wanted = Examiner(str(tmp_path), **limits)(_rows(raw_clips, encoded, learner.method))
    assert len(records) == len(wanted)
    for record, expected in zip(records, wanted, strict=True):
        common = expected.keys() - ONLY_EXPORTED
        assert record.keys() - ONLY_EXPORTED == common
        assert {key: record[key] for key in common} == {key: expected[key] for key in common}
    by_condition = {c: [r["text"] for r in records if r["condition"] == c] for c in ALL_CONDITIONS}
    for which in BLIND:
        assert by_condition[which] != by_condition["own"], which
    assert any(r["latent_phases"] for r in records) == learner.method.has_phases


def test_smaller_batches_change_no_answer(learner_of, encoded):
    loaded, learner = learner_of("latent_omni")
    conditions = ("own", "latents_zero", "half_budget")
    together, apart = (
        examine_trial(
            loaded, learner, encoded, ExamConfig(conditions=conditions, max_new_tokens=6, clips_per_batch=count)
        )
        for count in (32, 1)
    )
    key = {(r["sample_id"], r["condition"]): r for r in together}
    assert len(key) == len(together) == len(apart) == 21
    for record in apart:
        assert record == key[record["sample_id"], record["condition"]]


def test_the_first_clips_are_measured(learner_of, encoded):
    loaded, learner = learner_of("latent_omni")
    config = ExamConfig(conditions=("own", "latents_zero"), max_new_tokens=8, clips_per_batch=2, measured_clips=2)
    records = examine_trial(loaded, learner, encoded, config)
    measured = {(r["clip_id"], r["condition"]) for r in records if "measures" in r}
    assert measured == {("clip-0", "own"), ("clip-1", "own")}
    found = [r["measures"] for r in records if "measures" in r]
    assert all("attention" in figures for figures in found)
    # Each clip has the segments [0, 1), [0, 2) and [1, 2); those of one length compete.
    chances = [figures["retrieval"]["clip_chance"] for figures in found if "retrieval" in figures]
    assert chances and all(chance == pytest.approx(1 / 2) for chance in chances)


def test_blind_conditions_need_blanks_of_the_clips_shapes(learner_of, encoded, blanks):
    loaded, learner = learner_of("sft")
    config = ExamConfig(conditions=("own", "no_video"), max_new_tokens=2)
    without = {shape: clip for shape, clip in blanks.items() if shape != (3, 4, 4)}
    with pytest.raises(ValueError, match=r"no blank clip of shape \(3, 4, 4\) is given; encode black frames"):
        examine_trial(loaded, learner, encoded, config, blanks=without)
