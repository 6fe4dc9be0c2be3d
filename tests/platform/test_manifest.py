"""Every line of a manifest is a sample or a quarantine row that names file, line and field."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas
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


README_ROWS = [
    {
        "id": "drum-17",
        "clip": "clips/drum.mp4",
        "question": "Which drum is hit last?",
        "answer": "the snare",
        "trajectory": [{"text": "The last hit:"}, {"segment": [6.5, 8.0]}, {"text": " a snare. Answer: the snare"}],
    },
    {
        "id": "drum-18",
        "clip": "clips/drum.mp4",
        "question": "Which drum is hit first?",
        "answer": "the tom",
        "options": ["the tom", "the snare"],
        "needs_audio": False,
        "meta": {"licence": "free"},
    },
]


@pytest.mark.parametrize("writer", ["pandas", "pandas with an index", "pyarrow"])
def test_rows_of_a_jsonl_manifest_written_as_parquet_are_the_same_samples(tmp_path, writer):
    expected = read_manifest(_write(tmp_path, *README_ROWS)).samples
    file = tmp_path / "manifest.parquet"
    if writer == "pyarrow":
        pq.write_table(pa.Table.from_pylist(README_ROWS, schema=_schema_of(README_ROWS)), file)
    else:
        table = pandas.DataFrame(README_ROWS)
        (table.set_index(pandas.Index([5, 9])) if "index" in writer else table).to_parquet(file)
    read = read_manifest(file)
    assert read.quarantined == [] and read.samples == expected
    assert [len(s.looks) for s in read.samples] == [1, 0] and read.samples[1].options == ("the tom", "the snare")


def _schema_of(rows: list[dict]) -> pa.Schema:
    """As `from_pylist` infers it, with the fields of all rows and not of the first alone."""
    return pa.unify_schemas([pa.Table.from_pylist([row]).schema for row in rows], promote_options="permissive")


LOOK_FORM = "must be {'text': ...} or {'segment': [start_s, end_s]}, got "
IN_SECONDS = "segment must be [start_s, end_s] in seconds, got "
IN_ORDER = "segment needs 0 <= start_s < end_s, got "


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"answer": None}, "answer", "is missing"),
        ({"clip": None}, "clip", "is missing"),
        ({"question": " "}, "question", "must be a text that is not empty, got ' '"),
        ({"id": 7}, "id", "must be a text that is not empty, got 7"),
        ({"id": ""}, "id", "must be a text that is not empty, got ''"),
        ({"anser": "red"}, "anser", "unknown field; did you mean 'answer'?"),
        ({"licence": "free"}, "licence", "unknown field; what is not for training goes under 'meta'"),
        ({"options": ["blue", "green"]}, "answer", "'red' is none of the options ['blue', 'green']"),
        ({"options": "red"}, "options", "must be a list of texts, got 'red'"),
        ({"options": ""}, "options", "must be a list of texts, got ''"),
        ({"options": ["red", None]}, "options", "must be a list of texts, got ['red', None]"),
        ({"options": [1, 2]}, "options", "must be a list of texts, got [1, 2]"),
        ({"question_type": 3}, "question_type", "must be a text that is not empty, got 3"),
        ({"needs_audio": "yes"}, "needs_audio", "must be true or false, got 'yes'"),
        ({"needs_audio": 1}, "needs_audio", "must be true or false, got 1"),
        ({"trajectory": "Look:"}, "trajectory", "must be a list of steps, got str"),
        ({"trajectory": ""}, "trajectory", "must be a list of steps, got str"),
        ({"trajectory": 0}, "trajectory", "must be a list of steps, got int"),
        ({"trajectory": {"text": "x"}}, "trajectory", "must be a list of steps, got dict"),
        ({"trajectory": ["x"]}, "trajectory[0]", LOOK_FORM + "'x'"),
        ({"trajectory": [{"look": [0.0, 1.0]}]}, "trajectory[0]", LOOK_FORM + "{'look': [0.0, 1.0]}"),
        ({"trajectory": [{"start_s": 0.5}]}, "trajectory[0]", LOOK_FORM + "{'start_s': 0.5}"),
        (
            {"trajectory": [{"text": "x", "segment": [0.0, 1.0]}]},
            "trajectory[0]",
            LOOK_FORM + "{'text': 'x', 'segment': [0.0, 1.0]}",
        ),
        ({"trajectory": [{"text": 5}]}, "trajectory[0]", "text must be a text, got 5"),
        ({"trajectory": [{"segment": [1.0]}]}, "trajectory[0]", IN_SECONDS + "[1.0]"),
        (
            {"trajectory": [{"segment": [0.0, None]}]},
            "trajectory[0]",
            IN_SECONDS + "[0.0, None]",
        ),
        (
            {"trajectory": [{"segment": [0.0, math.inf]}]},
            "trajectory[0]",
            IN_SECONDS + "[0.0, inf]",
        ),
        (
            {"trajectory": [{"segment": ["0", "1"]}]},
            "trajectory[0]",
            IN_SECONDS + "['0', '1']",
        ),
        ({"trajectory": [{"segment": [2.0, 1.0]}]}, "trajectory[0]", IN_ORDER + "[2.0, 1.0]"),
        ({"trajectory": [{"segment": [-1.0, 1.0]}]}, "trajectory[0]", IN_ORDER + "[-1.0, 1.0]"),
    ],
)
def test_a_bad_row_is_reported_alike_from_a_table_and_from_a_line(tmp_path, changes, field, problem):
    row = {**GOOD, **changes}
    lines = _write(tmp_path, {name: value for name, value in row.items() if value is not None})
    table = tmp_path / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist([row]), table)
    for file in (lines, table):
        read = read_manifest(file)
        assert read.samples == []
        (refused,) = read.quarantined
        assert (refused.row_id, refused.stage, refused.reason) == (f"{file}:1", "manifest", "invalid")
        assert refused.detail == f"{file}, line 1, field '{field}': {problem}"


def test_one_bad_row_of_a_table_leaves_the_others(tmp_path):
    """In one table all steps are of one type: each has the fields of every kind of step, most of them null."""
    rows = [
        README_ROWS[0],
        {**README_ROWS[1], "answer": "the bell"},
        {**README_ROWS[0], "id": "both", "trajectory": [{"text": "a", "segment": [0.0, 1.0]}]},
        {**README_ROWS[0], "id": "neither", "trajectory": [{}]},
        {**README_ROWS[0], "id": "null", "trajectory": [None]},
        {**README_ROWS[0]},
        {**README_ROWS[1], "id": "last"},
    ]
    file = tmp_path / "manifest.parquet"
    pandas.DataFrame(rows).to_parquet(file)
    read = read_manifest(file)
    assert [s.sample_id for s in read.samples] == ["drum-17", "last"]
    assert [row.detail.removeprefix(f"{file}, ") for row in read.quarantined] == [
        "line 2, field 'answer': 'the bell' is none of the options ['the tom', 'the snare']",
        f"line 3, field 'trajectory[0]': {LOOK_FORM}{{'text': 'a', 'segment': [0.0, 1.0]}}",
        f"line 4, field 'trajectory[0]': {LOOK_FORM}{{}}",
        f"line 5, field 'trajectory[0]': {LOOK_FORM}None",
        f"line 6, field 'id': 'drum-17' was already used in {file}:1",
    ]


@pytest.mark.parametrize("damage", ["cut", "junk in the middle"])
def test_a_damaged_table_is_an_error_that_names_it(tmp_path, damage):
    file = tmp_path / "manifest.parquet"
    pandas.DataFrame(README_ROWS).to_parquet(file)
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] if damage == "cut" else content[:8] + b"\xff" * middle + content[8 + middle :])
    with pytest.raises(ManifestError, match=r"manifest\.parquet is not a Parquet file"):
        read_manifest(file)


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
