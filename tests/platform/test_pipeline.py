"""Preprocessing end to end on a real Ray: rows in = rows out + rows quarantined, whatever the clips are like."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from stored_features import features_of

from omni_platform.artifacts import find_card, fingerprint_bytes
from omni_platform.data import pipeline
from omni_platform.data.account import AccountError, account
from omni_platform.data.batches import TrainingRows
from omni_platform.data.manifest import read_manifest
from omni_platform.data.parts import Part, read_rows, write_part
from omni_platform.data.pipeline import PreprocessConfig, content_fingerprint, preprocess
from omni_platform.data.quarantine import QuarantineError, read_quarantine
from omni_platform.data.segments import refuse
from omni_platform.data.stages import EncodeClips
from omni_platform.data.tables import ANCHOR_SCHEMA, CLIP_SCHEMA, QUARANTINE_SCHEMA, SAMPLE_SCHEMA, SEGMENT_SCHEMA
from omni_platform.lease import LeaseHeldError, hold
from omni_platform.media.decode import DecodedClip, decode_clip
from omni_platform.schema import Sample
from omni_platform.train.config import TrainConfig
from omni_platform.train.identity import differences, settings_identity

pytestmark = pytest.mark.usefixtures("local_ray")


def _config(manifest: Path, output: Path, **fields) -> PreprocessConfig:
    return PreprocessConfig(manifest=str(manifest), output_dir=str(output), clips_per_part=2, **fields)


@pytest.fixture(scope="module")
def wild(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The film's manifest, and more rows that each have something wrong with them."""
    folder = tmp_path_factory.mktemp("wild")
    (folder / "clips").symlink_to(film / "clips")
    os.mkfifo(folder / "endless.mp4")
    lines = [json.loads(line) for line in (film / "manifest.jsonl").read_text().splitlines()]
    good, mute = lines[0], next(line for line in lines if "mute" in line["id"])
    lines += [
        {**good, "id": "endless", "clip": "endless.mp4"},
        {**good, "id": "outside", "trajectory": [{"segment": [5, 9]}]},
        {**good, "id": "past-the-end", "trajectory": [{"segment": [5, 6.4]}]},
        {**mute, "id": "needs-no-sound", "needs_audio": False},
        {**good, "id": "invalid", "options": ["not the answer"]},
        {**good, "id": "refused-span", "clip": lines[4]["clip"], "trajectory": [{"segment": [0.25, 0.75]}]},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "manifest.jsonl"


def test_every_row_comes_out_or_is_quarantined_with_its_reason(wild, tmp_path, stub_encoder):
    config = _config(wild, tmp_path / "out", decode_deadline_s=5.0)
    result = preprocess(config, partial(stub_encoder, refuse="0.25-0.75"))
    reasons = {row.row_id.split("-")[-2] if "film" in row.row_id else row.row_id: row for row in _sorted(tmp_path)}
    clip_of_refused = [row for row in _sorted(tmp_path) if row.reason == "not_encodable"]
    assert len(clip_of_refused) == 5 and {row.stage for row in clip_of_refused} == {"anchors"}
    counts = result.card.counts
    assert counts["rows_in"] == len(wild.read_text().splitlines()) == counts["samples"] + counts["quarantined"]
    expected = {"missing", "truncated", "no_audio", "container", "unreadable", "segment_outside", "invalid"}
    assert {key.partition(".")[2]: n for key, n in counts.items() if "." in key} == {
        **dict.fromkeys(expected, 1),
        "not_encodable": 5,
    }
    assert reasons["endless"].detail.endswith("/endless.mp4 is not a file")
    assert reasons["outside"].reason == "segment_outside"
    assert "made in" in result.summary and "1 missing" in result.summary and not result.reused

    rows = TrainingRows.open(tmp_path / "out")
    assert "needs-no-sound" in rows.ids and rows.row(rows.ids.index("needs-no-sound")).waveform is None
    past = rows.row(rows.ids.index("past-the-end"))
    assert [look.end_s for look in past.sample.looks] == [6.0] and len(past.anchors) == 1
    for name, schema in (
        ("clips", CLIP_SCHEMA),
        ("samples", SAMPLE_SCHEMA),
        ("segments", SEGMENT_SCHEMA),
        ("anchors", ANCHOR_SCHEMA),
        ("quarantine", QUARANTINE_SCHEMA),
    ):
        parts = list((tmp_path / "out" / name).glob("part-*.parquet"))
        assert parts and all(pq.read_schema(part).equals(schema) for part in parts)
        assert all(pq.read_schema(part).metadata[b"schema"].decode() in name for part in parts)


def _sorted(folder: Path) -> list:
    return read_quarantine(folder / "out")


def test_rows_hold_what_the_decoder_and_the_encoder_gave_and_a_second_run_reuses_them(
    film, tmp_path, stub_encoder, caplog
):
    # The encoder's process dies once on the way: it is replaced, and nothing is lost or doubled.
    died = tmp_path / "died"
    config = _config(film, tmp_path / "out", fps=4.0)
    first = preprocess(config, partial(stub_encoder, die=str(died)))
    assert died.exists() and (first.card.counts["samples"], first.card.counts["quarantined"]) == (24, 4)

    rows = TrainingRows.open(tmp_path / "out")
    samples = {s.sample_id: s for s in read_manifest(film).samples}
    for index in range(0, len(rows), 5):
        row = rows.row(index)
        assert row.sample == samples[row.sample.sample_id] == rows.sample(index)
        clip = decode_clip(row.sample.clip_uri, fps=4.0)
        assert row.sample_fps == 4.0 and np.array_equal(row.frames, clip.frames[:, ::2, ::2])
        assert row.waveform is not None and np.array_equal(row.waveform, clip.waveform)
        spans = [(look.start_s, look.end_s) for look in row.sample.looks]
        expected = stub_encoder().features(frames=row.frames, sample_fps=4.0, waveform=clip.waveform, spans=spans)
        assert np.array_equal(features_of(row.anchors), expected) and len(row.anchors) == len(spans)

    again = preprocess(replace(config, num_cpus_per_decode=0.5, clips_per_part=4), stub_encoder)
    assert again.reused and again.card == first.card and "reused" in again.summary
    other = preprocess(replace(config, clips_per_part=8), partial(stub_encoder, fingerprint="other"))
    assert not other.reused and "encoder_fingerprint is 'stub', expected 'other'" in caplog.text
    assert TrainingRows.open(tmp_path / "out").ids == rows.ids
    assert len(list((tmp_path / "out" / "samples").iterdir())) <= 2  # none of the old parts


def test_a_sample_that_is_too_long_is_quarantined_with_its_length_and_the_others_stay(film, tmp_path, stub_encoder):
    whole = preprocess(_config(film, tmp_path / "whole"), stub_encoder)
    rows = TrainingRows.open(tmp_path / "whole")
    lengths = _lengths(tmp_path / "whole")
    for index in (0, 7, len(rows) - 1):  # as the encoder measured it
        row = rows.row(index)
        assert lengths[row.sample.sample_id] == len(row.frames) + len(row.sample.question)
    limit = sorted(lengths.values())[len(lengths) // 2]
    too_long = {sample_id for sample_id, length in lengths.items() if length > limit}
    assert too_long

    cut = preprocess(_config(film, tmp_path / "cut", max_length=limit), stub_encoder)
    kept = TrainingRows.open(tmp_path / "cut")
    assert set(kept.ids) == set(lengths) - too_long and max(_lengths(tmp_path / "cut").values()) <= limit
    refused = {row.row_id: row for row in read_quarantine(tmp_path / "cut") if row.reason == "too_long"}
    assert refused.keys() == too_long and {row.stage for row in refused.values()} == {"layout"}
    for sample_id, row in refused.items():
        assert f"{sample_id} has {lengths[sample_id]} positions, more than max_length={limit}; " in row.detail
    counts = cut.card.counts
    assert counts["rows_in"] == whole.card.counts["rows_in"] == counts["samples"] + counts["quarantined"]
    assert counts["quarantined.too_long"] == len(too_long)


def _lengths(folder: Path) -> dict[str, int]:
    """Sample id -> positions of clip and words, as the encoder measured them."""
    return {row["sample_id"]: row["length"] for row in read_rows(str(folder), "samples").to_pylist()}


def test_a_sample_that_cannot_be_laid_out_is_quarantined_and_the_others_of_its_clip_stay(tmp_path, stub_encoder):
    class Strict(stub_encoder):
        def length(self, sample, **content) -> int:
            if sample.answer == "blue":
                raise ValueError("its trajectory ends in another answer")
            return super().length(sample, **content)

    frames, waveform = np.zeros((4, 8, 8, 3), np.uint8), np.full(32_000, 0.1, np.float32)
    clip = DecodedClip(frames=frames, sample_fps=2.0, waveform=waveform, duration_s=2.0)
    samples = [
        Sample(sample_id=name, clip_uri="a.mp4", question="Which?", answer=answer)
        for name, answer in (("a", "red"), ("b", "blue"), ("c", "green"))
    ]
    part = Part()
    EncodeClips(str(tmp_path), Strict, 1000, 0)._add_clip(part, "clip-a", clip, samples)
    assert [row["sample_id"] for row in part.samples] == ["a", "c"]
    [refused] = part.quarantined
    assert (refused.row_id, refused.stage, refused.reason) == ("b", "layout", "invalid")
    assert refused.detail == "b: its trajectory ends in another answer"


def test_what_changes_the_content_changes_the_fingerprint_and_nothing_else_does():
    config = PreprocessConfig(manifest="a", output_dir="b")
    same = [{"output_dir": "c"}, {"num_encoders": 4}, {"clips_per_part": 3}, {"memory_mb_per_decode": 9}]
    other = [{"fps": 1.0}, {"fps_max_frames": 8}, {"use_audio_in_video": False}, {"decode_deadline_s": 1.0}]
    other += [{"max_length": 9}, {"decoder": "auto"}]
    assert {content_fingerprint(replace(config, **fields)) for fields in same} == {content_fingerprint(config)}
    assert len({content_fingerprint(replace(config, **fields)) for fields in [{}, *other]}) == 7


def test_an_interrupted_run_goes_on_with_the_parts_that_are_whole(film, tmp_path, stub_encoder, caplog):
    config = _config(film, tmp_path / "out")
    with pytest.raises(ray.exceptions.RayError, match="the encoder is broken"):
        preprocess(config, partial(stub_encoder, crash_at=5))
    (staging,) = tmp_path.glob(".out.work/staged-*")
    assert find_card(tmp_path / "out") is None
    before = {p.name: p.stat().st_mtime_ns for p in (staging / "clips").iterdir()}
    assert before  # the parts ahead of the crash
    (staging / "clips" / "part-half.parquet").write_bytes(b"a part whose samples were never written")

    result = preprocess(config, stub_encoder)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "clips").iterdir()}
    assert before.items() <= after.items() and "part-half.parquet" not in after
    assert "going on with an interrupted run" in caplog.text and list(tmp_path.glob(".out.*")) == []
    assert (result.card.counts["clips"], result.card.counts["quarantined"]) == (6, 4)


def test_parts_without_anchors_are_not_kept_for_another_encoder(film, tmp_path, stub_encoder, monkeypatch):
    """Questions without a trajectory have no anchors that would name the encoder, but its frames are its work."""
    lines = [json.loads(line) for line in (film / "manifest.jsonl").read_text().splitlines()]
    manifest = tmp_path / "manifest.jsonl"
    rows = [{**line, "clip": str(film / line["clip"]), "trajectory": []} for line in lines]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    config = _config(manifest, tmp_path / "out")
    with monkeypatch.context() as cut_off, pytest.raises(KeyboardInterrupt):  # after all parts are written
        cut_off.setattr(pipeline, "account", _interrupt)
        preprocess(config, partial(stub_encoder, fingerprint="first"))
    (staging,) = tmp_path.glob(".out.work/staged-*")
    before = {p.name: p.stat().st_mtime_ns for p in (staging / "clips").iterdir()}
    preprocess(config, partial(stub_encoder, fingerprint="second"))
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "clips").iterdir()}
    assert before and not before.items() & after.items()
    card = find_card(tmp_path / "out")
    assert card is not None and card.encoder_fingerprint == "second"
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file()) == ["_files.json", "card.json"]


def test_data_made_again_with_one_other_answer_is_other_data_to_a_training(film, tmp_path, stub_encoder):
    lines = [json.loads(line) for line in (film / "manifest.jsonl").read_text().splitlines()][:8]
    rows = [{**line, "clip": str(film / line["clip"])} for line in lines]
    manifest, config = tmp_path / "manifest.jsonl", _config(tmp_path / "manifest.jsonl", tmp_path / "out")
    training = TrainConfig(run_name="r", dataset_dir=str(tmp_path / "out"), output_dir="o")

    def prepared(rows, encoder):
        manifest.write_text("\n".join(map(json.dumps, rows)))
        preprocess(config, partial(stub_encoder, fingerprint=encoder))
        ids = "\n".join(TrainingRows.open(tmp_path / "out").ids)
        return ids, settings_identity(training), fingerprint_bytes(manifest.read_bytes())

    ids, first, before = prepared(rows, "encoder")
    other = next(option for option in rows[0]["options"] if option != rows[0]["answer"])
    same_ids, changed, after = prepared([{**rows[0], "answer": other}, *rows[1:]], "encoder")
    assert same_ids == ids  # all that was looked at before
    assert differences(first, changed) == [f"data.inputs.{manifest} was '{before}', is '{after}'"]
    _, back, _ = prepared(rows, "encoder")
    assert differences(first, back) == []
    _, encoded, _ = prepared(rows, "another")
    assert differences(first, encoded) == ["data.encoder_fingerprint was 'encoder', is 'another'"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_second_run_into_one_folder_is_refused_before_its_work(film, tmp_path, stub_encoder):
    with (
        hold(tmp_path / "out", owner="preprocess"),
        pytest.raises(LeaseHeldError, match="out is being written by prep"),
    ):
        preprocess(_config(film, tmp_path / "out"), partial(stub_encoder, crash_at=1))


def test_a_job_with_nothing_left_fails_and_publishes_nothing(tmp_path, stub_encoder):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"id": "a", "clip": "no.mp4", "question": "q", "answer": "a"}))
    with pytest.raises(QuarantineError, match=r"1 of 1 rows.*never all.*no\.mp4 does not exist"):
        preprocess(_config(manifest, tmp_path / "out"), stub_encoder)
    assert find_card(tmp_path / "out") is None


def test_books_that_do_not_add_up_are_an_error(film, tmp_path):
    manifest = read_manifest(film)
    folder = str(tmp_path)
    write_part(folder, Part(quarantined=[refuse(s, "decode", "missing", "x") for s in manifest.samples[1:]]))
    with pytest.raises(AccountError, match=rf"28 rows in, 0 out and 27 .*lost \['{manifest.samples[0].sample_id}'"):
        account(manifest, folder, encoder="stub")
    write_part(folder, Part(quarantined=[refuse(s, "decode", "missing", "x") for s in manifest.samples[:2]]))
    with pytest.raises(AccountError, match=rf"twice \['{manifest.samples[1].sample_id}'"):
        account(manifest, folder, encoder="stub")


@pytest.mark.parametrize(
    "fields",
    [
        {"fps": 0.0},
        {"decode_deadline_s": 0.0},
        {"fail_above_quarantined_share": 1.1},
        {"num_encoders": 0},
        {"max_length": 0},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        PreprocessConfig(manifest="a", output_dir="b", **fields)
