"""The rows as Arrow tables: one schema for each kind of file in a preprocessed folder."""

from __future__ import annotations

import pyarrow as pa

from omni_platform.schema import SCHEMA_VERSION

_STEP = pa.struct([("text", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])


def _fine(sense: str) -> list[tuple[str, pa.DataType]]:
    return [
        (sense, pa.binary()),
        (f"{sense}_weights", pa.list_(pa.float32())),
        (f"{sense}_features", pa.int32()),
        (f"{sense}_bins", pa.int32()),
    ]


SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
        ("clip_uri", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("options", pa.list_(pa.string())),
        ("question_type", pa.string()),
        ("needs_audio", pa.bool_()),
        ("trajectory", pa.list_(_STEP)),
        ("length", pa.int32()),
    ],
    metadata={"schema": "sample", "version": str(SCHEMA_VERSION)},
)
"""`length` counts the positions of clip and words; what a method puts at a look, markers and slots, comes on top."""

CLIP_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("clip_uri", pa.string()),
        ("duration_s", pa.float64()),
        ("sample_fps", pa.float64()),
        ("frames", pa.binary()),
        ("num_frames", pa.int32()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("has_audio", pa.bool_()),
        ("waveform", pa.binary()),
        ("num_samples", pa.int32()),
        ("sample_rate_hz", pa.int32()),
    ],
    metadata={"schema": "clip", "version": str(SCHEMA_VERSION)},
)
"""Decoded clips: `frames` is uint8 (num_frames, height_px, width_px, 3), `waveform` int16 mono.

`num_samples` are those of the waveform, null for a clip without sound.
"""

SEGMENT_SCHEMA = pa.schema(
    [
        ("segment_id", pa.string()),
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
        ("index", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ],
    metadata={"schema": "segment", "version": str(SCHEMA_VERSION)},
)
"""`sample_id` is null for another moment of the clip, which no sample looks at; so it is beside its anchors."""

ANCHOR_SCHEMA = pa.schema(
    [
        ("segment_id", pa.string()),
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
        ("index", pa.int32()),
        ("dim", pa.int32()),
        ("dtype", pa.string()),
        *_fine("visual"),
        *_fine("audio"),
        ("encoder_fingerprint", pa.string()),
    ],
    metadata={"schema": "anchor", "version": str(SCHEMA_VERSION)},
)
"""For each sense `FineFeatures`: `<sense>` holds its values, `dtype` (rows, dim), as many rows as there are weights."""

QUARANTINE_SCHEMA = pa.schema(
    [("row_id", pa.string()), ("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string())],
    metadata={"schema": "quarantine", "version": str(SCHEMA_VERSION)},
)
