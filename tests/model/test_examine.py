"""Every condition answers every question, so that differences are paired and n is fixed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from stored_segments import stored

from omni_model.examine import ALL_CONDITIONS, CONDITIONS, OWN, Examiner, summarise
from omni_model.folder import Preparation, save_folder
from omni_model.methods import make_method
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import render_frames, render_waveform
from omni_platform.schema import Sample, SegmentFeatures


@dataclass
class Row:
    sample: Sample
    clip_id: str
    frames: np.ndarray
    sample_fps: float
    waveform: np.ndarray | None
    anchors: tuple[SegmentFeatures, ...]


@pytest.fixture(scope="module")
def rows(sample_with) -> list[Row]:
    out = []
    for index in range(3):
        scene = make_scene(seed=3, index=index, num_shots=2)
        frames = render_frames(scene, times_s=np.arange(4) / 2, side_px=56)
        anchors = stored(np.ones((1, 5, 64), np.float32), 3)
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
@pytest.mark.parametrize("conditions", [CONDITIONS, ALL_CONDITIONS], ids=["usual", "all"])
def test_every_condition_has_a_record_of_every_question(exported, latent, rows, looks, conditions):
    limits = {"max_new_tokens": 8, "max_phases": 2, "device": "cpu"}
    examiner = Examiner(exported(latent(), looks), conditions=conditions, **limits)
    records = examiner(rows[:2]) + examiner(rows[1:])
    questions = [r["sample_id"] for r in records if r["condition"] == OWN]
    assert questions == ["q0", "q1", "q1", "q2"]
    for condition in conditions:
        assert [r["sample_id"] for r in records if r["condition"] == condition] == questions, condition
    assert any(r["latent_steps"] for r in records if r["condition"] == OWN) == looks
    report = summarise(records)
    assert report["n"] == 4
    assert {f["all"]["n"] for f in report["conditions"].values()} == {4}
    assert set(report["costs"]) == set(conditions) - {OWN}


def test_conditions_do_what_they_are_called(exported, latent, rows):
    conditions = (OWN, "no_video", "no_audio", "neither", "span_removed", "markers_only", "double_budget")
    options = {"conditions": conditions, "max_new_tokens": 8, "max_phases": 2, "device": "cpu"}
    records = Examiner(exported(latent(), True), **options)(rows)
    by_condition = {c: [r for r in records if r["condition"] == c] for c in conditions}
    own = [r["text"] for r in by_condition[OWN]]
    for which in ("no_video", "no_audio", "neither"):
        assert [r["text"] for r in by_condition[which]] != own, which
    slots = {"span_removed": 0, "markers_only": 0, "double_budget": 10, OWN: 5}
    for which, count in slots.items():
        assert all(r["latent_steps"] == count * r["latent_phases"] for r in by_condition[which]), which
        assert any(r["latent_phases"] for r in by_condition[which]) == (which != "span_removed")


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


def test_gold_needs_anchors_of_the_models_width(exported, latent, rows):
    folder = exported(latent(), True)
    for shape, there in (((1, 5, 64), True), ((0, 5, 64), True), ((1, 11, 64), True), ((1, 5, 32), False)):
        odd = [*rows[:2], replace(rows[2], anchors=stored(np.ones(shape, np.float32), 3))]
        records = Examiner(folder, conditions=(OWN, "latents_gold"), max_new_tokens=3, device="cpu")(odd)
        assert ({r["condition"] for r in records} == {OWN, "latents_gold"}) == there, shape


def test_questions_about_one_clip_are_answered_as_if_alone(exported, latent, rows):
    """They share the clip, under every condition; their order changes nothing."""
    examiner = Examiner(exported(latent(), True), conditions=(OWN, "no_audio", "half_budget"), device="cpu")
    asked = [rows[0], rows[1], replace(rows[0], sample=replace(rows[0].sample, sample_id="q9", question="What?"))]
    together = {(r["sample_id"], r["condition"]): r for r in examiner(asked)}
    assert len(together) == 9
    for row in asked:
        for record in examiner([row]):
            assert together[record["sample_id"], record["condition"]] == record


def test_records_of_own_answers_tell_where_they_looked(exported, latent, rows):
    records = Examiner(exported(latent(), True), conditions=(OWN, "latents_zero"), max_new_tokens=8, device="cpu")(rows)
    for record in records:
        if record["condition"] != OWN:
            assert record["looked_right"] is None
            assert "moments" not in record
            continue
        phases = {moment["phase"] for moment in record["moments"]}
        assert phases == set(range(record["latent_phases"]))
        first = [m["start_s"] < 1.0 for m in record["moments"] if m["phase"] == 0]  # the trajectory looks at second 0
        assert record["looked_right"] == (pytest.approx(sum(first) / len(first)) if first else None)
    assert any(record.get("moments") for record in records)


def test_measures_are_part_of_own_records_and_of_the_summary(exported, latent, rows):
    options = {"conditions": (OWN, "latents_zero"), "max_new_tokens": 8, "max_phases": 2, "device": "cpu"}
    records = Examiner(exported(latent(), True), measured=True, **options)(rows)
    assert [("measures" in r) for r in records] == [r["condition"] == OWN for r in records]
    json.dumps(records)
    report = summarise(records)
    assert {"attention", "latents", "retrieval"} <= set(report["measures"])
    # Clips of two seconds and looks of one: two moments a clip, six in the batch.
    assert report["measures"]["retrieval"]["clip_visual"]["chance"] == pytest.approx(1 / 2)
    assert report["measures"]["retrieval"]["batch_audio"]["chance"] == pytest.approx(1 / 6)
    plain = summarise(Examiner(exported(make_method("sft"), True), measured=True, **options)(rows))
    assert set(plain["measures"]) == {"attention"}
    assert summarise(Examiner(exported(latent(), True), **options)(rows))["measures"] == {}


def _record(condition: str, expected: str, answer: str, **more) -> dict:
    numbers = {"latent_phases": 1, "completion_tokens": 1, "latent_steps": 1, "looked_right": None}
    options = ["red", "green", "blue"]
    right = answer == expected
    words = {"condition": condition, "expected": expected, "answer": answer, "options": options, "right": right}
    return {"question_type": "t", **numbers, **words, **more}


def test_donor_following_counts_pairs_that_can_tell():
    other = [
        _record("latents_other", "red", "green", donor_expected="Green"),
        _record("latents_other", "red", "red", donor_expected="blue"),
        _record("latents_other", "red", "red", donor_expected="red"),  # the same answer either way
        _record("latents_other", "red", "blue", donor_expected="high"),  # no option of the question
        _record("latents_other", "blue", "red", donor_expected="red"),
    ]
    own = [_record(OWN, r["expected"], r["expected"]) for r in other]
    figure = summarise([*own, *other])["measures"]["donor_following"]
    assert (figure["n"], figure["accuracy"]) == (3, pytest.approx(2 / 3))
    assert "donor_following" not in summarise([*own, *other[2:4], *other[2:4], other[2]])["measures"]


def test_donors_have_another_answer_where_they_can(exported, latent, rows):
    wanted = ["green", "green", "blue"]
    changed = [
        replace(row, sample=replace(row.sample, answer=answer)) for row, answer in zip(rows, wanted, strict=True)
    ]
    records = Examiner(exported(latent(), True), conditions=(OWN, "latents_other"), max_new_tokens=3, device="cpu")(
        changed
    )
    assert [r["donor_expected"] for r in records if r["condition"] == "latents_other"] == ["blue", "blue", "green"]
