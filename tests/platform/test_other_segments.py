"""Other moments of a clip, to tell the looked-at ones from: encoded, accounted for, and read back beside the looks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import ray
from stored_features import features_of, segment_of

from omni_platform.artifacts import Card, write_card
from omni_platform.config import fingerprint
from omni_platform.data.account import AccountError, account
from omni_platform.data.batches import TrainingRow, TrainingRows
from omni_platform.data.manifest import ManifestRead, read_manifest
from omni_platform.data.parts import Part, read_rows, write_part
from omni_platform.data.pipeline import PreprocessConfig, PreprocessResult, content_fingerprint, preprocess
from omni_platform.data.segments import Span, cut_segments, other_segments, same_span, spread_spans
from omni_platform.media.decode import DECODE_VERSION, DecodedClip
from omni_platform.schema import LookStep, Sample

COUNT = 3
WITHOUT_LOOKS = "film-5-00003"
"""Its questions lose their trajectories."""


def _spans(*starts_s: float, length_s: float = 1.0) -> list[Span]:
    return [(start_s, start_s + length_s) for start_s in starts_s]


def test_moments_are_spread_evenly_and_are_as_long_as_the_looks_on_average():
    looks = [(1.0, 3.0), (4.0, 8.0)]
    assert spread_spans(10.0, looks, 3) == [(0.0, 3.0), (3.5, 6.5), (7.0, 10.0)]
    assert spread_spans(10.0, looks, 1) == [(0.0, 3.0)]
    assert spread_spans(10.0, looks, 0) == spread_spans(10.0, [], 3) == []
    assert 4.277 - 0.121 + 0.121 > 4.277  # and yet nothing leads out of the clip
    assert spread_spans(4.277, [(0.0, 0.121)], 2) == [(4.277 - 0.121, 4.277)]


def test_moments_that_equal_a_look_to_the_millisecond_are_left_out():
    assert spread_spans(6.0, [(2.5, 3.5), (4.9992, 5.9992)], 3) == _spans(0.0)
    assert [round(start_s, 9) for start_s, _ in spread_spans(6.0, [(2.5, 3.5), (4.997, 5.997)], 3)] == [0.0, 5.0]


@pytest.mark.parametrize("looks", [[(0.0, 6.0)], [(0.0, 5.9996)], [(0.0, 5.997), (0.0, 6.0)]])
def test_a_clip_hardly_longer_than_its_looks_has_no_moment_twice(looks):
    found = spread_spans(6.0, looks, 9)
    assert len(found) == (0 if len(looks) == 1 else 2)
    assert not any(same_span(one, other) for one, other in combinations([*found, looks[0]], 2))


@pytest.fixture(scope="module")
def manifest(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looks")
    (folder / "clips").symlink_to(film / "clips")
    lines = [json.loads(line) for line in (film / "manifest.jsonl").read_text().splitlines()]
    lines = [{**line, "trajectory": []} if WITHOUT_LOOKS in line["id"] else line for line in lines]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def made(manifest, tmp_path_factory, local_ray, stub_encoder) -> PreprocessResult:
    return preprocess(_config(manifest, tmp_path_factory.mktemp("made") / "out"), stub_encoder)


def _config(manifest: Path, output: Path, **fields) -> PreprocessConfig:
    fields = {"clips_per_part": 2, "other_segments": COUNT, **fields}
    return PreprocessConfig(manifest=str(manifest), output_dir=str(output), **fields)


def _looks(sample: Sample) -> list[Span]:
    return [(look.start_s, look.end_s) for look in sample.looks]


def test_rows_come_with_the_other_moments_of_their_clip_as_the_encoder_made_them(made, stub_encoder):
    rows = TrainingRows.open(made.folder)
    by_clip: dict[str, list[TrainingRow]] = {}
    for index in range(len(rows)):
        row = rows.row(index)
        by_clip.setdefault(row.clip_id, []).append(row)
    assert len(rows) == 24 and len(by_clip) == 6
    num_others = 0
    for of_clip in by_clip.values():
        looks = {span for row in of_clip for span in _looks(row.sample)}
        # All looks last a second of six.
        windows = set(_spans(0.0, 2.5, 5.0)) - looks if looks else set()
        num_others += len(windows)
        for row in of_clip:
            own = _looks(row.sample)
            others = sorted(s for s in looks | windows if not any(s[0] < end and start < s[1] for start, end in own))
            assert len(others) >= 2 or not looks
            clip = {"frames": row.frames, "sample_fps": row.sample_fps, "waveform": row.waveform}
            expected = stub_encoder().features(**clip, spans=others)
            assert np.array_equal(features_of(row.other_anchors), expected)
            assert np.array_equal(features_of(row.anchors), stub_encoder().features(**clip, spans=own))
    assert 10 < num_others < 5 * COUNT  # some moments are looked at
    counts = made.card.counts
    assert counts["other_segments"] == num_others
    assert counts["segments"] == sum(len(rows.sample(index).looks) for index in range(len(rows)))
    assert f"{counts['segments']} segments and {num_others} others, 4 quarantined" in made.summary


def test_without_other_segments_what_is_written_is_what_was_written_before(made, manifest, tmp_path, stub_encoder):
    plain = preprocess(_config(manifest, tmp_path / "out", other_segments=0), stub_encoder)
    samples = {row["sample_id"]: row for row in _table(plain.folder, "samples", "sample_id")}
    expected = [
        segment
        for sample in read_manifest(manifest).samples
        if sample.sample_id in samples
        for segment in cut_segments(sample, samples[sample.sample_id]["clip_id"])
    ]
    found = _table(plain.folder, "segments", "segment_id")
    assert found == [vars(segment) for segment in sorted(expected, key=lambda segment: segment.segment_id)]
    # The others are added to it and change nothing of it.
    for kind in ("segments", "anchors"):
        looked_at = [row for row in _table(made.folder, kind, "segment_id") if row["sample_id"] is not None]
        assert _table(plain.folder, kind, "segment_id") == looked_at
    assert plain.card.counts == {name: n for name, n in made.card.counts.items() if name != "other_segments"}
    assert "others" not in plain.summary
    rows = TrainingRows.open(plain.folder)
    assert {len(rows.row(i).other_anchors) for i in range(len(rows)) if WITHOUT_LOOKS in rows.ids[i]} == {0}
    assert len(rows.row(rows.ids.index("film-5-00000-q0")).other_anchors) == 3  # of its neighbours


def _table(folder: str, kind: str, key: str) -> list[dict]:
    return sorted(read_rows(folder, kind).to_pylist(), key=lambda row: row[key])


def test_an_interrupted_run_goes_on_with_its_other_segments(made, manifest, tmp_path, stub_encoder, caplog):
    # What is logged of a failed run may keep its actor alive: there must be room for one more beside it.
    config = _config(manifest, tmp_path / "out", num_cpus_per_encoder=0.5)
    with pytest.raises(ray.exceptions.RayError, match="the encoder is broken"):
        preprocess(config, partial(stub_encoder, crash_at=4))
    (staging,) = tmp_path.glob(".out.work/staged-*")
    before = read_rows(str(staging), "segments")
    counts = made.card.counts
    assert before["sample_id"].null_count and len(before) < counts["segments"] + counts["other_segments"]

    result = preprocess(config, stub_encoder)
    assert "going on with an interrupted run" in caplog.text and result.card.counts == counts
    for kind in ("segments", "anchors"):
        assert _table(result.folder, kind, "segment_id") == _table(made.folder, kind, "segment_id")
    assert preprocess(config, stub_encoder).reused


def test_their_number_changes_the_content_and_none_leaves_older_folders_valid():
    config = PreprocessConfig(manifest="a", output_dir="b")
    assert len({content_fingerprint(replace(config, other_segments=n)) for n in (0, 1, 2)}) == 3
    before = {
        "fps": 2.0,
        "fps_max_frames": 256,
        "decode_max_pixels": 1280 * 720,
        "decoder": "pyav",
        "use_audio_in_video": True,
        "max_length": 32768,
        "max_clip_duration_s": None,
        "decode_deadline_s": 60.0,
        "fail_above_quarantined_share": 1.0,
        "decode_version": DECODE_VERSION,
    }
    assert content_fingerprint(config) == fingerprint(before)
    with pytest.raises(ValueError, match="other_segments must be at least 0, got -1"):
        replace(config, other_segments=-1)


def _sample(sample_id: str, *looks: Span) -> Sample:
    steps = tuple(LookStep(start_s=start_s, end_s=end_s) for start_s, end_s in looks)
    return Sample(sample_id=sample_id, clip_uri="c.mp4", question="q", answer="a", trajectory=steps)


def _part(clip_id: str, samples: list[Sample], others: list[Span]) -> Part:
    """Anchors hold the start of their span, so that it can be told what they are of."""
    part = Part()
    frames = np.zeros((2, 2, 2, 3), np.uint8)
    part.add_clip(clip_id, "c.mp4", DecodedClip(frames=frames, sample_fps=2.0, waveform=None, duration_s=9.0))
    for sample in samples:
        part.add_sample(sample, clip_id)
    segments = [segment for sample in samples for segment in cut_segments(sample, clip_id)]
    for segment in segments + other_segments(others, clip_id):
        block_KD = np.full((2, 1), segment.start_s, np.float32)
        part.add_segment(segment, segment_of(block_KD, num_visual=1), encoder="e")
    return part


def _read(folder: Path) -> dict[str, list[list[float]]]:
    """Sample id -> starts of its own and of its other segments."""
    write_card(folder, Card(name="anchors"))
    rows = TrainingRows.open(folder)
    found = {}
    for index, sample_id in enumerate(rows.ids):
        row = rows.row(index)
        blocks = [features_of(segments, (2, 1)) for segments in (row.anchors, row.other_anchors)]
        for block in blocks:
            assert block.dtype == np.float32 and np.all(block[:, 0] == block[:, 1])
        found[sample_id] = [block[:, 0, 0].tolist() for block in blocks]
    return found


def test_questions_of_a_clip_give_each_other_their_segments_once_and_in_order(tmp_path):
    near = (1.00048828125, 2.0)  # less than a millisecond from a look of others
    samples = [
        _sample("a", *_spans(7.0, 1.0)),
        _sample("b", *_spans(3.0)),
        _sample("c", near, *_spans(3.0)),
        _sample("d"),
        _sample("g", (2.5, 3.5)),  # shares time with (3, 4), which is then no other moment, in either direction
    ]
    write_part(str(tmp_path), _part("one", samples, _spans(5.0, 0.0)))
    write_part(str(tmp_path), _part("two", [_sample("e", *_spans(2.0))], []))
    write_part(str(tmp_path), _part("three", [_sample("f")], []))
    assert _read(tmp_path) == {
        "a": [[7.0, 1.0], [0.0, 2.5, 3.0, 5.0]],
        "b": [[3.0], [0.0, 1.0, 5.0, 7.0]],
        "c": [[near[0], 3.0], [0.0, 5.0, 7.0]],
        "d": [[], [0.0, 1.0, 2.5, 3.0, 5.0, 7.0]],
        "g": [[2.5], [0.0, 1.0, 5.0, 7.0]],
        "e": [[2.0], []],
        "f": [[], []],
    }


def test_a_clip_in_two_parts_has_all_its_segments(tmp_path):
    """As where a run was interrupted, and a question that was refused then is used now."""
    write_part(str(tmp_path), _part("one", [_sample("a", *_spans(7.0, 1.0))], []))
    write_part(str(tmp_path), _part("one", [_sample("b", *_spans(3.0))], []))
    assert _read(tmp_path) == {"a": [[7.0, 1.0], [3.0]], "b": [[3.0], [1.0, 7.0]]}


def test_the_books_count_other_segments_apart_and_refuse_those_of_no_clip(tmp_path):
    samples = [_sample("a", *_spans(1.0, 2.0))]
    manifest = ManifestRead(uri="m", fingerprint="m", samples=samples, quarantined=[])
    part = _part("one", samples, _spans(5.0, 0.0, 7.0))
    write_part(str(tmp_path), part)
    counts = {"rows_in": 1, "clips": 1, "samples": 1, "segments": 2, "other_segments": 3, "quarantined": 0}
    assert account(manifest, str(tmp_path), encoder="e") == counts
    part.segments[-1]["clip_id"] = "gone"
    write_part(str(tmp_path), part)
    with pytest.raises(AccountError, match=r"the 5 segments and 5 anchors in .* do not match"):
        account(manifest, str(tmp_path), encoder="e")


def test_a_folder_without_anchors_gives_empty_blocks(tmp_path):
    write_part(str(tmp_path), _part("one", [_sample("a")], []))
    write_card(tmp_path, Card(name="anchors"))
    row = TrainingRows.open(tmp_path).row(0)
    assert row.anchors == row.other_anchors == ()
