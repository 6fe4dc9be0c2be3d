"""Every line of a manifest is a sample or a quarantine row that names file, line and field."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omni_platform.data.manifest import ManifestError, manifest_line, read_manifest
from omni_platform.data.tables import SAMPLE_SCHEMA
from omni_platform.schema import LookStep, Sample, TextStep, steps_to_rows

GOOD = {"id": "a", "clip": "clips/a.mp4", "question": "Which colour?", "answer": "red"}


def _write(folder: Path, *lines: object) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_a_sample_survives_the_way_through_a_line(tmp_path):
    sample = Sample(
        sample_id="a",
        clip_uri=str(tmp_path / "clips" / "a.mp4"),
        question="Which?",
        answer="red",
        options=("red", "blue"),
        question_type="colour_at_tone",
        trajectory=(TextStep(text="Look:"), LookStep(start_s=0.0, end_s=1.5), TextStep(text=" red")),
        needs_audio=False,
    )
    _write(tmp_path, {**manifest_line(sample), "clip": "clips/a.mp4"})
    read = read_manifest(tmp_path)
    assert read.samples == [sample] and read.quarantined == [] and read.num_rows == 1


def test_clips_lie_relative_to_the_manifest_or_where_they_say(tmp_path):
    clips = ["a.mp4", "x/../a.mp4", "/data/b.mp4", "s3://bucket/c.mp4", "file:///data/d.mp4"]
    path = _write(tmp_path, *({**GOOD, "id": str(i), "clip": clip} for i, clip in enumerate(clips)))
    here = str(tmp_path / "a.mp4")
    expected = [here, here, "/data/b.mp4", "s3://bucket/c.mp4", "/data/d.mp4"]
    assert [s.clip_uri for s in read_manifest(path).samples] == expected


@pytest.mark.parametrize(
    ("line", "field", "problem"),
    [
        ("{not json", "(line)", "is not JSON"),
        ("[1, 2]", "(line)", "JSON object"),
        ({k: v for k, v in GOOD.items() if k != "answer"}, "answer", "is missing"),
        ({**GOOD, "question": " "}, "question", "not empty"),
        ({**GOOD, "id": 7}, "id", "must be a text"),
        ({**GOOD, "anser": "red"}, "anser", "did you mean 'answer'"),
        ({**GOOD, "licence": "free"}, "licence", "'meta'"),
        ({**GOOD, "options": ["blue", "green"]}, "answer", "'red' is none of the options"),
        ({**GOOD, "options": "red"}, "options", "list of texts"),
        ({**GOOD, "options": ["red", " "]}, "options", "option 2 is empty"),
        ({**GOOD, "options": ["red", "blue", "Red"]}, "options", "options 1 and 3 are the same, 'Red'"),
        ({**GOOD, "options": ["red", *map(str, range(26))]}, "options", "there are 27"),
        ({**GOOD, "needs_audio": "yes"}, "needs_audio", "true or false"),
        ({**GOOD, "trajectory": {"text": "x"}}, "trajectory", "list of steps"),
        ({**GOOD, "trajectory": [{"text": "x"}, {"look": [0, 1]}]}, "trajectory[1]", "'segment'"),
        ({**GOOD, "trajectory": [{"segment": [2, 1]}]}, "trajectory[0]", "0 <= start_s < end_s"),
        ({**GOOD, "trajectory": [{"segment": [0, "1"]}]}, "trajectory[0]", "in seconds"),
        (json.dumps({**GOOD, "trajectory": [{"segment": [0, math.nan]}]}), "trajectory[0]", "in seconds"),
        ({**GOOD, "id": "first"}, "id", "already used in"),
    ],
)
def test_a_line_that_is_not_valid_names_file_line_and_field(tmp_path, line, field, problem):
    path = _write(tmp_path, {**GOOD, "id": "first"}, "", line, {**GOOD, "id": "last"})
    read = read_manifest(path)
    assert [s.sample_id for s in read.samples] == ["first", "last"] and read.num_rows == 3
    (row,) = read.quarantined
    assert (row.row_id, row.stage, row.reason) == (f"{path}:3", "manifest", "invalid")
    assert f"{path}, line 3, field '{field}'" in row.detail and problem in row.detail


def test_what_is_not_for_training_goes_under_meta(tmp_path):
    assert len(read_manifest(_write(tmp_path, {**GOOD, "meta": {"licence": "free"}})).samples) == 1


def test_parquet_says_the_same_as_lines(tmp_path):
    rows = [
        {
            "sample_id": name,
            "clip_id": None,
            "clip_uri": "clips/a.mp4",
            "question": "Which?",
            "answer": answer,
            "options": ["red", "blue"],
            "question_type": "colour",
            "needs_audio": name != "b",
            "trajectory": steps_to_rows((TextStep(text="Look:"), LookStep(start_s=0.0, end_s=1.0))),
        }
        for name, answer in (("a", "red"), ("b", "blue"), ("c", "green"))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), tmp_path / "manifest.parquet")
    read = read_manifest(tmp_path)
    assert [(s.sample_id, s.needs_audio, len(s.looks)) for s in read.samples] == [("a", True, 1), ("b", False, 1)]
    assert "manifest.parquet, line 3, field 'answer'" in read.quarantined[0].detail

    lines = tmp_path / "lines"
    lines.mkdir()
    _write(lines, *(manifest_line(s) for s in read.samples))
    assert read_manifest(lines).samples == read.samples


def test_the_fingerprint_follows_the_content(tmp_path):
    before = read_manifest(_write(tmp_path, GOOD)).fingerprint
    assert read_manifest(_write(tmp_path, GOOD)).fingerprint == before
    assert read_manifest(_write(tmp_path, {**GOOD, "answer": "blue"})).fingerprint != before


def test_a_manifest_that_cannot_be_read_at_all_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match=r"holds no manifest; expected manifest\.jsonl or manifest\.parquet"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match=r"nowhere\.jsonl does not exist"):
        read_manifest(tmp_path / "nowhere.jsonl")
    with pytest.raises(ManifestError, match="holds no rows"):
        read_manifest(_write(tmp_path, "", ""))
    (tmp_path / "bad.parquet").write_text("text")
    with pytest.raises(ManifestError, match="not a Parquet file"):
        read_manifest(tmp_path / "bad.parquet")
