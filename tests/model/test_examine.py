"""Every condition answers every question, so that differences are paired and n is fixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from omni_model.examine import CONDITIONS, OWN, Examiner, summarise
from omni_model.folder import Preparation, save_folder
from omni_model.methods import make_method
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import Sample


@dataclass
class Row:
    sample: Sample
    clip_id: str
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    anchors: np.ndarray


@pytest.fixture(scope="module")
def rows(sample_with) -> list[Row]:
    out = []
    for index in range(3):
        scene = make_scene(seed=3, index=index, num_shots=2)
        frames = render_frames(scene, times_s=np.arange(4) / 2, side_px=56)
        anchors = np.ones((1, 5, 64), np.float32)
        sample = sample_with(1, sample_id=f"q{index}")
        out.append(Row(sample, f"clip-{index}", frames, 2.0, render_waveform(scene), anchors))
    return out


@pytest.fixture(scope="module")
def exported(new_backbone, tokenizer, vocabulary, latent, tmp_path_factory):
    """`exported(method, looks)`: a folder with a model that often looks, or never."""

    def save(method, looks: bool):
        folder = tmp_path_factory.mktemp("exported")
        backbone = new_backbone(seed=9)
        backbone.thinker.lm_head.weight.data[vocabulary.trigger] *= 3.5 if looks else 0.0
        save_folder(
            folder,
            backbone=backbone,
            tokenizer=tokenizer,
            method=method,
            heads=method.build_heads(64),
            preparation=Preparation(),
        )
        return str(folder)

    return save


@pytest.mark.parametrize("looks", [True, False])
def test_every_condition_has_a_record_of_every_question(exported, latent, rows, looks):
    examiner = Examiner(exported(latent(), looks), max_new_tokens=8, max_phases=2, device="cpu")
    records = examiner(rows[:2]) + examiner(rows[1:])
    questions = [r["sample_id"] for r in records if r["condition"] == OWN]
    assert questions == ["q0", "q1", "q1", "q2"]
    for condition in CONDITIONS:
        assert [r["sample_id"] for r in records if r["condition"] == condition] == questions, condition
    assert any(r["latent_steps"] for r in records if r["condition"] == OWN) == looks
    report = summarise(records)
    assert report["n"] == 4
    assert {f["all"]["n"] for f in report["conditions"].values()} == {4}
    assert set(report["costs"]) == set(CONDITIONS) - {OWN}


def test_a_method_without_latents_has_no_conditions_on_them(exported, rows):
    records = Examiner(exported(make_method("sft"), True), max_new_tokens=4, device="cpu")(rows)
    assert {r["condition"] for r in records} == {OWN, "no_audio", "no_video", "neither"}


def test_unreadable_answers_are_wrong_and_stay_in_the_count(exported, latent, rows):
    records = Examiner(exported(latent(), True), conditions=(OWN,), max_new_tokens=3, device="cpu")(rows)
    report = summarise(records)
    wrong = [r for r in records if not r["answer"]]
    assert wrong
    assert not any(r["right"] for r in wrong)
    assert report["unreadable_share"] == len(wrong) / 3
    assert report["conditions"][OWN]["all"]["n"] == 3


def test_unknown_conditions_are_named(exported, latent):
    with pytest.raises(ValueError, match=r"unknown conditions \['blind'\]"):
        Examiner("nowhere", conditions=("blind",))
