"""The manifest: one question about one clip per line, as JSON lines or as Parquet.

A line that is not valid is quarantined with its file, line and field; it never stops the others.
"""

from __future__ import annotations

import difflib
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omni_platform import storage
from omni_platform.artifacts import fingerprint_bytes
from omni_platform.schema import LookStep, Quarantined, Sample, Step, TextStep

MANIFEST_NAMES = ("manifest.jsonl", "manifest.parquet")
_FIELDS = (
    "id",
    "clip",
    "question",
    "answer",
    "options",
    "question_type",
    "trajectory",
    "needs_audio",
    "meta",
)
_MAX_OPTIONS = 26
_REQUIRED = ("id", "clip", "question", "answer")


class ManifestError(ValueError):
    """A manifest that cannot be read at all."""


@dataclass(frozen=True, kw_only=True)
class ManifestRead:
    """What a manifest holds: every line is in exactly one of the two lists."""

    samples: list[Sample]
    """Valid rows; `clip_uri` is absolute or has a scheme."""
    quarantined: list[Quarantined]
    """Lines that are not valid; their row id is `file:line`."""
    uri: str
    """The file that was read."""
    fingerprint: str
    """Changes with the file's content."""

    @property
    def num_rows(self) -> int:
        return len(self.samples) + len(self.quarantined)


def read_manifest(uri: str | Path) -> ManifestRead:
    """Read a manifest file, or the `manifest.jsonl` or `manifest.parquet` of a folder; local or `s3://`.

    Clips that are named without a scheme or a leading slash lie relative to the manifest's folder. Raises
    `ManifestError` where there is no such file, it is not of these formats, or holds no rows.
    """
    file = _find(storage.absolute(uri))
    data = storage.read_bytes(file)
    rows = _parquet_rows(data, file) if file.endswith(".parquet") else _json_rows(data)
    samples: list[Sample] = []
    quarantined: list[Quarantined] = []
    seen: dict[str, str] = {}
    for line, row in rows:
        where = f"{file}:{line}"
        try:
            sample = parse_line(row, folder=storage.parent(file))
            if sample.sample_id in seen:
                raise _LineError("id", f"{sample.sample_id!r} was already used in {seen[sample.sample_id]}")
        except _LineError as error:
            detail = f"{file}, line {line}, field {error.field!r}: {error.problem}"
            quarantined.append(Quarantined(row_id=where, stage="manifest", reason="invalid", detail=detail))
            continue
        seen[sample.sample_id] = where
        samples.append(sample)
    if not seen and not quarantined:
        raise ManifestError(f"{file} holds no rows")
    return ManifestRead(samples=samples, quarantined=quarantined, uri=file, fingerprint=fingerprint_bytes(data))


def manifest_line(sample: Sample) -> dict[str, Any]:
    """A sample in the form of a JSONL manifest line; `parse_line` reads it back."""
    return {
        "id": sample.sample_id,
        "clip": sample.clip_uri,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "question_type": sample.question_type,
        "needs_audio": sample.needs_audio,
        "trajectory": [
            {"text": s.text} if isinstance(s, TextStep) else {"segment": [s.start_s, s.end_s]}
            for s in sample.trajectory
        ],
    }


class _LineError(ValueError):
    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


def parse_line(row: Any, *, folder: str) -> Sample:
    """A decoded manifest line (or the problem that reading it gave) as a sample."""
    if isinstance(row, _LineError):
        raise row
    if not isinstance(row, dict):
        raise _LineError("(line)", f"must be a JSON object, got {type(row).__name__}")
    for name in row:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "what is not for training goes under 'meta'"
            raise _LineError(name, f"unknown field; {hint}")
    for name in _REQUIRED:
        if name not in row:
            raise _LineError(name, "is missing")
    options = _texts(row, "options")
    answer = _text(row, "answer")
    if problem := _problem_of(options):
        raise _LineError("options", problem)
    if options and answer not in options:
        raise _LineError("answer", f"{answer!r} is none of the options {list(options)}")
    return Sample(
        sample_id=_text(row, "id"),
        clip_uri=_clip_uri(_text(row, "clip"), folder),
        question=_text(row, "question"),
        answer=answer,
        options=options,
        question_type=_text(row, "question_type", default="open"),
        trajectory=_trajectory(row.get("trajectory")),
        needs_audio=_flag(row, "needs_audio", default=True),
    )


def _problem_of(options: tuple[str, ...]) -> str | None:
    """Why no answer could be read as one of the options, if that is so."""
    words = [" ".join(option.split()).lower() for option in options]
    if "" in words:
        return f"option {words.index('') + 1} is empty"
    same = next((i for i, word in enumerate(words) if words.index(word) < i), None)
    if same is not None:
        return f"options {words.index(words[same]) + 1} and {same + 1} are the same, {options[same]!r}"
    if len(options) > _MAX_OPTIONS:
        return f"there are {len(options)}, and letters are enough for {_MAX_OPTIONS}"
    return None


def _find(uri: str) -> str:
    if uri.endswith((".jsonl", ".json", ".parquet")):
        if not storage.exists(uri):
            raise ManifestError(f"manifest {uri} does not exist")
        return uri
    for name in MANIFEST_NAMES:
        if storage.exists(storage.join(uri, name)):
            return storage.join(uri, name)
    raise ManifestError(f"{uri} holds no manifest; expected {' or '.join(MANIFEST_NAMES)} in it")


def _json_rows(data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            yield number, _LineError("(line)", f"is not JSON: {error}")


def _parquet_rows(data: bytes, file: str) -> Iterator[tuple[int, Any]]:
    """Rows in the form of JSON lines; the row number stands for the line.

    Two layouts are read: the rows of a JSONL manifest as pandas or pyarrow write them, and those of our own samples
    table. In a table every row has every field, so a field that a row does not have is null in it.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{file} is not a Parquet file: {error}") from None
    renamed = {"sample_id": "id", "clip_uri": "clip"}
    # Row by row: the manifest of a large corpus as Python objects would take many times its size.
    for number, row in enumerate((row for batch in table.to_batches() for row in batch.to_pylist()), start=1):
        present = {name: value for name, value in row.items() if value is not None and not _is_only_ours(name)}
        line = {renamed.get(name, name): value for name, value in present.items()}
        if isinstance(steps := line.get("trajectory"), list):
            line["trajectory"] = [_step_line(step) for step in steps]
        yield number, line


def _is_only_ours(column: str) -> bool:
    """A column that says nothing about the sample: of our own samples table, or the index that pandas adds."""
    return column in ("clip_id", "length") or column.startswith("__index_level_")


def _step_line(step: Any) -> Any:
    """A step of a table in the form of a JSON line; what is no step stays as it is, for `_step` to refuse."""
    if not isinstance(step, dict):
        return step
    given = {name: value for name, value in step.items() if value is not None}
    if given.keys() == {"start_s", "end_s"}:
        return {"segment": [given["start_s"], given["end_s"]]}
    return given


def _clip_uri(clip: str, folder: str) -> str:
    uri = storage.join(folder, clip)
    # `a/../b.mp4` and `b.mp4` are one clip, to be decoded once.
    return uri if storage.is_remote(uri) else os.path.normpath(storage.local_path(uri))


def _text(row: dict, name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if not isinstance(value, str) or not value.strip():
        raise _LineError(name, f"must be a text that is not empty, got {value!r}")
    return value


def _texts(row: dict, name: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _LineError(name, f"must be a list of texts, got {value!r}")
    return tuple(value)


def _flag(row: dict, name: str, *, default: bool) -> bool:
    value = row.get(name, default)
    if not isinstance(value, bool):
        raise _LineError(name, f"must be true or false, got {value!r}")
    return value


def _trajectory(steps: Any) -> tuple[Step, ...]:
    if steps is None:
        return ()
    if not isinstance(steps, list):
        raise _LineError("trajectory", f"must be a list of steps, got {type(steps).__name__}")
    return tuple(_step(step, f"trajectory[{i}]") for i, step in enumerate(steps))


def _step(step: Any, field: str) -> Step:
    if not isinstance(step, dict) or len(step) != 1 or next(iter(step)) not in ("text", "segment"):
        raise _LineError(field, f"must be {{'text': ...}} or {{'segment': [start_s, end_s]}}, got {step!r}")
    if "text" in step:
        if not isinstance(step["text"], str):
            raise _LineError(field, f"text must be a text, got {step['text']!r}")
        return TextStep(text=step["text"])
    times = step["segment"]
    if not isinstance(times, list) or len(times) != 2 or not all(_is_time(t) for t in times):
        raise _LineError(field, f"segment must be [start_s, end_s] in seconds, got {times!r}")
    if not 0 <= times[0] < times[1]:
        raise _LineError(field, f"segment needs 0 <= start_s < end_s, got {times}")
    return LookStep(start_s=float(times[0]), end_s=float(times[1]))


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
