"""A whole trial: a base on disk and encoded clips on disk become curves, a report, and shifted tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omni_model.encoded import EncodedQuestions, encode_clips, save_encoded
from omni_model.trial import TrialConfig
from omni_model.trial_exam import ExamConfig
from omni_model.trial_run import TrialFiles, TrialResult, run_trial, spread

CONDITIONS = ("own", "no_audio", "latents_zero", "latents_gold")
OPTIONS = {"num_visual": 1, "num_audio": 1, "bottleneck": "answer", "latent_loss": "infonce", "sync_weight": 0.0}
TRIAL = TrialConfig(
    method="latent_omni", options=OPTIONS, steps=3, clips_per_step=2, families=("colour", "tone"), markers_like=":"
)
EXAM = ExamConfig(conditions=CONDITIONS, max_new_tokens=6, clips_per_batch=2, measured_clips=2)


@pytest.fixture(scope="module")
def base(backbone, tokenizer, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    backbone.thinker.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoded(backbone, raw_clips) -> list[EncodedQuestions]:
    return encode_clips(backbone, raw_clips)


@pytest.fixture(scope="module")
def files(backbone, encoded, raw_clips, tmp_path_factory) -> TrialFiles:
    """Two clips in a file; the test asks `shape` as well, which training is never to ask."""
    folder: Path = tmp_path_factory.mktemp("encoded")
    dark = [
        replace(
            raw,
            frames=np.zeros_like(raw.frames),
            waveform=np.zeros_like(raw.waveform) if raw.waveform is not None else None,
            samples=(),
            segments=(),
        )
        for raw in raw_clips[:2]
    ]
    parts = {"first": encoded[:2], "second": encoded[2:], "blank": encode_clips(backbone, dark)}
    for name, clips in parts.items():
        save_encoded(folder / f"{name}.pt", clips)
    first, second, blank = ([str(folder / f"{name}.pt")] for name in parts)
    return TrialFiles(
        train=(first, second), validation=(first,), test=(first, second), shifted={"longer": second}, blank=blank
    )


def _run(base: str, trial: TrialConfig, exam: ExamConfig, files: TrialFiles, **given) -> tuple[TrialResult, dict]:
    """What a trial found, and its notes by step."""
    curves: dict = {}
    found = run_trial(base, trial, exam, files, curves.__setitem__, report_steps=2, **given)
    return found, curves


@pytest.fixture(scope="module")
def trial(base, files) -> tuple[TrialResult, dict]:
    return _run(base, TRIAL, EXAM, files, held_out=("shape",))


@pytest.fixture(scope="module")
def found(trial) -> TrialResult:
    return trial[0]


@pytest.fixture(scope="module")
def curves(trial) -> dict:
    return trial[1]


def test_the_curves_have_what_was_learned_and_what_validation_says(found, curves):
    assert list(curves) == [2, 3]
    for figures in curves.values():
        assert {"train/loss", "train/text", "train/latent", "val/own"} <= figures.keys()
        kinds = {name for name in figures if name.startswith("val/")} - {"val/own"}
        assert kinds == {"val/colour", "val/tone"}
        assert figures["val/own"] == pytest.approx((figures["val/colour"] + figures["val/tone"]) / 2)
    assert found.train_s > 0 and found.exam_s > 0


def test_the_report_has_every_condition_of_the_test(found, encoded):
    assert found.report["conditions"].keys() == set(CONDITIONS)
    asked = [sample.sample_id for clip in encoded for sample in clip.samples]
    for condition in CONDITIONS:
        of_condition = [record for record in found.records if record["condition"] == condition]
        assert [record["sample_id"] for record in of_condition] == asked
    assert sum("measures" in record for record in found.records) == 4  # own answers about the first two clips


def test_families_held_out_are_asked_in_tests_alone(found, curves, base, files, encoded):
    asked = {record["question_type"] for record in found.records}
    assert asked == {"colour", "tone", "shape"}
    # What was never learned blurs no figure of the report.
    assert found.report["conditions"]["own"]["by_type"].keys() == {"colour", "tone"}
    assert found.report["n"] == sum(r["question_type"] != "shape" for r in found.records if r["condition"] == "own")
    assert all("val/shape" not in figures for figures in curves.values())
    assert found.shifts.keys() == {"longer"} and found.shifts["longer"].keys() == {"colour", "tone"}
    without, _ = _run(base, replace(TRIAL, steps=1), replace(EXAM, conditions=("own",)), files)
    assert {record["question_type"] for record in without.records} == {"colour", "tone"}
    # What training was never asked changes nothing of it.
    named = replace(TRIAL, families=("colour", "tone", "shape"))
    assert _run(base, named, EXAM, files)[1] != curves
    assert _run(base, TRIAL, EXAM, files)[1] == curves


def test_sets_are_mixed_in_proportion(encoded, tmp_path):
    for name, count in (("a", 6), ("b", 2)):
        clips = [replace(encoded[0], clip_id=f"{name}{i}") for i in range(count)]
        half = count // 2
        save_encoded(tmp_path / f"{name}-0.pt", clips[:half])
        save_encoded(tmp_path / f"{name}-1.pt", clips[half:])
    sets = [[str(tmp_path / f"{name}-{part}.pt") for part in (0, 1)] for name in ("a", "b")]
    assert [clip.clip_id for clip in spread(sets)] == ["a0", "b0", "a1", "a2", "a3", "b1", "a4", "a5"]
    assert [clip.clip_id for clip in spread(sets[:1])] == [f"a{i}" for i in range(6)]
