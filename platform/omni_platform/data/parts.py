"""The files of a preprocessed folder: Parquet parts of clips, samples, segments, anchors and quarantine.

A part is named by what it holds, so a task that is run again overwrites its own files. Its samples are
written last: a part with a samples file is whole.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omni_platform import storage
from omni_platform.data.quarantine import to_table
from omni_platform.data.tables import ANCHOR_SCHEMA, CLIP_SCHEMA, SAMPLE_SCHEMA, SEGMENT_SCHEMA
from omni_platform.media.decode import SAMPLE_RATE_HZ, DecodedClip
from omni_platform.schema import (
    FineFeatures,
    Quarantined,
    Sample,
    Segment,
    SegmentFeatures,
    steps_from_rows,
    steps_to_rows,
)

KINDS = ("clips", "segments", "anchors", "samples")
"""In the order of writing."""


@dataclass(kw_only=True)
class Part:
    """The rows of one part, gathered clip by clip."""

    clips: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    anchors: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def add_clip(self, clip_id: str, clip_uri: str, clip: DecodedClip) -> None:
        num_frames, height_px, width_px = clip.frames.shape[:3]
        self.clips.append(
            {
                "clip_id": clip_id,
                "clip_uri": clip_uri,
                "duration_s": clip.duration_s,
                "sample_fps": clip.sample_fps,
                "frames": clip.frames.tobytes(),
                "num_frames": num_frames,
                "height_px": height_px,
                "width_px": width_px,
                "has_audio": clip.has_audio,
                "waveform": None if clip.waveform is None else pcm_bytes(clip.waveform),
                "num_samples": None if clip.waveform is None else len(clip.waveform),
                "sample_rate_hz": SAMPLE_RATE_HZ,
            }
        )

    def add_sample(self, sample: Sample, clip_id: str, *, length: int | None = None) -> None:
        """`length` is that of clip and words; None where it was not measured."""
        row = {**asdict(sample), "options": list(sample.options), "clip_id": clip_id, "length": length}
        self.samples.append({**row, "trajectory": steps_to_rows(sample.trajectory)})

    def add_segment(self, segment: Segment, features: SegmentFeatures, *, encoder: str) -> None:
        values = features.visual.values
        self.segments.append(asdict(segment))
        self.anchors.append(
            {
                "segment_id": segment.segment_id,
                "sample_id": segment.sample_id,
                "clip_id": segment.clip_id,
                "index": segment.index,
                "dim": values.shape[1],
                "dtype": str(values.dtype),
                **_fine_columns("visual", features.visual),
                **_fine_columns("audio", features.audio),
                "encoder_fingerprint": encoder,
            }
        )

    @property
    def name(self) -> str:
        """Derived from the ids of all rows, used or refused."""
        rows = [row["sample_id"] for row in self.samples] + [row.row_id for row in self.quarantined]
        return "part-" + hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16]


def write_part(folder: str, part: Part) -> None:
    """Write a part's files; the same part written again replaces itself."""
    name = f"{part.name}.parquet"
    # What an earlier try of the same task refused may be used now, and the other way round.
    for kind in ("quarantine",) * (not part.quarantined) + KINDS[::-1] * (not part.samples):
        storage.remove(storage.join(folder, kind, name))
    if part.quarantined:
        write_table(storage.join(folder, "quarantine", name), to_table(part.quarantined))
    if not part.samples:
        return
    _write_by_clip(storage.join(folder, "clips", name), part.clips, CLIP_SCHEMA)
    write_table(storage.join(folder, "segments", name), pa.Table.from_pylist(part.segments, schema=SEGMENT_SCHEMA))
    _write_by_clip(storage.join(folder, "anchors", name), part.anchors, ANCHOR_SCHEMA)
    write_table(storage.join(folder, "samples", name), pa.Table.from_pylist(part.samples, schema=SAMPLE_SCHEMA))


def _write_by_clip(uri: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """One row group per clip, so that a reader fetches a clip without its neighbours."""
    with (
        storage.open_write(uri) as file,
        pq.ParquetWriter(file, schema, compression="zstd", compression_level=1, use_dictionary=False) as groups,
    ):
        for _, of_clip in itertools.groupby(rows, key=lambda row: row["clip_id"]):
            groups.write_table(pa.Table.from_pylist(list(of_clip), schema=schema))


def write_table(uri: str, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all."""
    with storage.open_write(uri) as file:
        pq.write_table(table, file)


def keep_whole_parts(folder: str) -> set[str]:
    """Clear what an interrupted attempt left unfinished; returns the ids of the samples that are done.

    Quarantined rows are tried again: what was missing or too slow then may be there now.
    """
    storage.remove(storage.join(folder, "quarantine"))
    whole = {_name_of(uri) for uri in storage.list_files(storage.join(folder, "samples"), ".parquet")}
    for kind in KINDS[:-1]:
        for uri in storage.list_files(storage.join(folder, kind), ".parquet"):
            if _name_of(uri) not in whole:
                storage.remove(uri)
    return set(read_column(folder, "samples", "sample_id"))


def read_column(folder: str, kind: str, column: str) -> list[Any]:
    """One column of all parts of a kind."""
    values: list[Any] = []
    for uri in storage.list_files(storage.join(folder, kind), ".parquet"):
        with storage.open_read(uri) as file:
            values += pq.read_table(file, columns=[column])[column].to_pylist()
    return values


def read_rows(folder: str, kind: str) -> pa.Table:
    """All rows of a kind (of any but `clips`, which do not belong into memory at once)."""
    tables = []
    for uri in storage.list_files(storage.join(folder, kind), ".parquet"):
        with storage.open_read(uri) as file:
            tables.append(pq.read_table(file))
    schema = {"samples": SAMPLE_SCHEMA, "segments": SEGMENT_SCHEMA, "anchors": ANCHOR_SCHEMA}[kind]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def to_sample(row: dict[str, Any]) -> Sample:
    """A row of the samples table as a sample."""
    fields = {key: value for key, value in row.items() if key not in ("clip_id", "length")}
    fields["options"] = tuple(row["options"] or ())
    fields["trajectory"] = steps_from_rows(row["trajectory"])
    return Sample(**fields)


def to_segment_features(row: dict[str, Any]) -> SegmentFeatures:
    """The features in a row of the anchors table."""
    return SegmentFeatures(visual=_to_fine(row, "visual"), audio=_to_fine(row, "audio"))


def pcm_bytes(waveform: np.ndarray) -> bytes:
    """float32 samples on the 16-bit grid, as the decoder gives them, without loss."""
    return np.round(waveform * 32768.0).astype("<i2").tobytes()


def from_pcm(data: bytes | memoryview) -> np.ndarray:
    """The inverse of `pcm_bytes`: float32 (N,)."""
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0


def find_duplicates(ids: Iterable[str]) -> list[str]:
    """Ids that occur more than once."""
    seen: set[str] = set()
    return sorted({i for i in ids if i in seen or seen.add(i)})


def _name_of(uri: str) -> str:
    return uri.rpartition("/")[2]


def _fine_columns(sense: str, fine: FineFeatures) -> dict[str, Any]:
    return {
        sense: np.ascontiguousarray(fine.values).tobytes(),
        f"{sense}_weights": fine.weights,
        f"{sense}_features": fine.num_features,
        f"{sense}_bins": fine.num_bins,
    }


def _to_fine(row: dict[str, Any], sense: str) -> FineFeatures:
    weights = np.asarray(row[f"{sense}_weights"], np.float32)
    # A copy, because torch refuses (with a warning) to share memory that it may not write.
    values = np.frombuffer(row[sense], row["dtype"]).reshape(len(weights), row["dim"]).copy()
    return FineFeatures(
        values=values, weights=weights, num_features=row[f"{sense}_features"], num_bins=row[f"{sense}_bins"]
    )
