"""The two stages that run on the cluster: decode clips (tasks), encode and write them (actors).

Between them travels one Arrow row per clip, decoded or refused, so that one bad clip is a row like any other.
"""

from __future__ import annotations

import atexit
import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from omni_platform import storage
from omni_platform.data.anchors import BuildEncoder, encode_spans
from omni_platform.data.parts import Part, from_pcm, pcm_bytes, write_part
from omni_platform.data.segments import check_sample, cut_segments, fit_sample, other_segments, refuse, spread_spans
from omni_platform.media.decode import DecodedClip
from omni_platform.media.decode_process import DecodeProcess
from omni_platform.media.probe import MediaError
from omni_platform.schema import Sample

_MAX_BLOCKS = 4096
_INPUT_SCHEMA = pa.schema([("clip_id", pa.string()), ("clip_uri", pa.string()), ("samples", pa.binary())])
_DECODED_SCHEMA = pa.schema(
    [
        *_INPUT_SCHEMA,
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("frames", pa.large_binary()),
        ("shape", pa.list_(pa.int32())),
        ("waveform", pa.large_binary()),
        ("sample_fps", pa.float64()),
        ("duration_s", pa.float64()),
    ]
)
_decoder: DecodeProcess | None = None


def input_tables(samples: list[Sample], *, base: str, clips_per_block: int) -> list[pa.Table]:
    """One row per clip with its samples, a few clips per table (the unit of one decoding task).

    Clip ids are derived from the URI relative to `base`, so that a folder may move.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.clip_uri, []).append(sample)
    rows = [
        {"clip_id": _clip_id(uri, base), "clip_uri": uri, "samples": pickle.dumps(group)}
        for uri, group in groups.items()
    ]
    size = max(clips_per_block, -(-len(rows) // _MAX_BLOCKS))
    return [pa.Table.from_pylist(rows[i : i + size], schema=_INPUT_SCHEMA) for i in range(0, len(rows), size)]


def decode_rows(batch: pa.Table, *, options: dict[str, Any], deadline_s: float) -> Iterator[pa.Table]:
    """Decode the clips of a batch one by one, each under its deadline; a refused clip carries its reason."""
    decoder = _decoder_of_this_worker()
    for row in batch.to_pylist():
        try:
            # By the name that the manifest gives: whoever reads the quarantine wrote it.
            clip = decoder.decode(row["clip_uri"], name=row["clip_uri"], deadline_s=deadline_s, **options)
        except MediaError as error:
            row |= {"reason": error.reason, "detail": error.detail}
        else:
            row |= _clip_columns(clip)
        yield pa.Table.from_pylist([row], schema=_DECODED_SCHEMA)


ENCODER_NOTE = "_encoder.txt"
"""In a folder that is being written: the fingerprint of the encoder that its parts are from."""


class EncodeClips:
    """An actor that holds an encoder: turns decoded clips into a part on disk, and returns its name."""

    def __init__(self, folder: str, build_encoder: BuildEncoder, max_length: int, other_segments: int) -> None:
        self._folder, self._max_length, self._other_segments = folder, max_length, other_segments
        self._encoder = build_encoder()
        # Anchors name their encoder too, but a part may have none, and its frames are the encoder's work as well.
        storage.write_bytes(storage.join(folder, ENCODER_NOTE), self._encoder.fingerprint.encode())

    def __call__(self, batch: pa.Table) -> pa.Table:
        part = Part()
        for index in range(batch.num_rows):
            row = {name: batch[name][index] for name in batch.column_names}
            samples: list[Sample] = pickle.loads(row["samples"].as_py())
            if row["reason"].is_valid:
                reason, detail = row["reason"].as_py(), row["detail"].as_py()
                part.quarantined += [refuse(sample, "decode", reason, detail) for sample in samples]
                continue
            self._add_clip(part, row["clip_id"].as_py(), _clip_of(row), samples)
        write_part(self._folder, part)
        return pa.table({"part": [part.name], "encoder": [self._encoder.fingerprint]})

    def _add_clip(self, part: Part, clip_id: str, clip: DecodedClip, samples: list[Sample]) -> None:
        refusals = [(sample, check_sample(sample, clip)) for sample in samples]
        part.quarantined += [refusal for _, refusal in refusals if refusal is not None]
        usable = [fit_sample(sample, clip.duration_s) for sample, refusal in refusals if refusal is None]
        if not usable:
            return
        encoder, clip = self._encoder, replace(clip, frames=self._encoder.prepare_frames(clip.frames))
        content: dict[str, Any] = {"frames": clip.frames, "sample_fps": clip.sample_fps, "waveform": clip.waveform}
        lengths = self._measure(part, usable, content)
        usable = [sample for sample in usable if sample.sample_id in lengths]
        if not usable:
            return
        try:
            looks = [(look.start_s, look.end_s) for sample in usable for look in sample.looks]
            others = spread_spans(clip.duration_s, looks, self._other_segments)
            features = encode_spans(encoder, **content, spans=looks + others)
        except ValueError as error:
            detail = f"{usable[0].clip_uri} cannot be encoded: {error}"
            part.quarantined += [refuse(sample, "anchors", "not_encodable", detail) for sample in usable]
            return
        if usable:
            part.add_clip(clip_id, usable[0].clip_uri, clip)
        for sample in usable:
            part.add_sample(sample, clip_id, length=lengths[sample.sample_id])
        segments = [segment for sample in usable for segment in cut_segments(sample, clip_id)]
        for segment in segments + other_segments(others, clip_id):
            part.add_segment(segment, features[segment.start_s, segment.end_s], encoder=encoder.fingerprint)

    def _measure(self, part: Part, samples: list[Sample], content: dict[str, Any]) -> dict[str, int]:
        """Lengths of the samples that can be laid out and fit, by id; the others are quarantined one by one.

        They are quarantined whole: a sequence cut anywhere teaches nonsense.
        """
        lengths: dict[str, int] = {}
        for sample in samples:
            try:
                length = self._encoder.length(sample, **content)
            except ValueError as error:
                part.quarantined.append(refuse(sample, "layout", "invalid", f"{sample.sample_id}: {error}"))
                continue
            if length <= self._max_length:
                lengths[sample.sample_id] = length
                continue
            detail = (
                f"{sample.sample_id} has {length} positions, more than max_length={self._max_length}; shorten the "
                "clip, lower fps_max_frames or video_max_pixels, or raise max_length"
            )
            part.quarantined.append(refuse(sample, "layout", "too_long", detail))
        return lengths


def _decoder_of_this_worker() -> DecodeProcess:
    """One child per worker process, kept from task to task; Ray may run many tasks in one worker."""
    global _decoder
    if _decoder is None:
        _decoder = DecodeProcess()
        atexit.register(_decoder.close)
    return _decoder


def _clip_columns(clip: DecodedClip) -> dict[str, Any]:
    return {
        "frames": clip.frames.tobytes(),
        "shape": list(clip.frames.shape),
        "waveform": None if clip.waveform is None else pcm_bytes(clip.waveform),
        "sample_fps": clip.sample_fps,
        "duration_s": clip.duration_s,
    }


def _clip_of(row: dict[str, pa.Scalar]) -> DecodedClip:
    # A copy, because torch refuses (with a warning) to share memory that it may not write.
    frames = np.frombuffer(row["frames"].as_buffer(), np.uint8).reshape(row["shape"].as_py()).copy()
    waveform = from_pcm(row["waveform"].as_buffer()) if row["waveform"].is_valid else None
    sample_fps, duration_s = row["sample_fps"].as_py(), row["duration_s"].as_py()
    return DecodedClip(frames=frames, sample_fps=sample_fps, waveform=waveform, duration_s=duration_s)


def _clip_id(uri: str, base: str) -> str:
    return hashlib.sha256(uri.removeprefix(f"{base}/").encode()).hexdigest()[:16]
