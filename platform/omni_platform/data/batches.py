"""The trainer's side of a preprocessed folder: any row at any time, and which rows belong to which step.

Nothing here has a position to save: the rows of a step are a function of seed, epoch and step, so that
resuming is a jump, with any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from omni_platform import storage
from omni_platform.artifacts import Card, CardError, read_card
from omni_platform.data.clip_anchors import ClipAnchors
from omni_platform.data.parts import from_pcm, read_rows, to_sample
from omni_platform.data.row_groups import RowGroupReader, find_clips
from omni_platform.schema import SCHEMA_VERSION, Sample, SegmentFeatures

_SHAPE = ("num_frames", "height_px", "width_px", "sample_fps", "num_samples")
Segments = tuple[tuple[SegmentFeatures, ...], tuple[SegmentFeatures, ...]]


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One sample with its clip; what is stored of its segments is read when it is asked for."""

    sample: Sample
    clip_id: str
    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    sample_fps: float
    waveform: np.ndarray | None
    """float32 (N,) at 16 kHz, or None for a mute clip."""
    read_segments: Callable[[], Segments]

    @property
    def anchors(self) -> tuple[SegmentFeatures, ...]:
        """One per look, in the order of the trajectory."""
        return self.read_segments()[0]

    @property
    def other_anchors(self) -> tuple[SegmentFeatures, ...]:
        """Segments of the clip that share no time with the sample's looks, each once, in the order of time."""
        return self.read_segments()[1]


@dataclass(frozen=True, kw_only=True)
class RowOutline:
    """One sample and the shape of its clip, all of which is in memory."""

    sample: Sample
    clip_id: str
    num_frames: int
    height_px: int
    width_px: int
    sample_fps: float
    num_samples: int | None
    """Of sound at 16 kHz, None for a mute clip."""
    pooled_bins: tuple[int | None, int | None]
    """Of the whole folder: in how many bins the visual and audio features of segments were pooled for storage; None
    where all of them are kept as they are."""


class TrainingRows:
    """Random access to the rows of a complete preprocessed folder, local or `s3://`.

    Samples and the shapes of clips are held in memory; clips and segments are read by row group and a few are kept.
    Not for sharing between threads; pickles cheaply (a worker opens its own files).
    """

    @classmethod
    def open(cls, folder: str | Path, *, cached_clips: int = 32) -> TrainingRows:
        """Read samples and the index of clips. Raises `CardError` for a folder that is incomplete or of old."""
        return cls(storage.absolute(folder), cached_clips=cached_clips)

    def __init__(self, folder: str, *, cached_clips: int) -> None:
        self.folder = folder
        self.card: Card = read_card(folder)
        if self.card.schema_version != SCHEMA_VERSION:
            raise CardError(
                f"{folder} was written in version {self.card.schema_version} of the schema, and this code reads "
                f"version {SCHEMA_VERSION}: preprocess the manifest again"
            )
        # In the order of their ids, not of the parts, which depend on how the work was divided.
        samples = sorted(read_rows(folder, "samples").to_pylist(), key=lambda row: row["sample_id"])
        self._samples = [to_sample(row) for row in samples]
        self.ids: list[str] = [sample.sample_id for sample in self._samples]
        """Sample ids, sorted: row i has id i."""
        self._clip_ids = [row["clip_id"] for row in samples]
        self._segments = ClipAnchors(folder, cached_clips=cached_clips)
        # Whatever part it is in, it is the same clip.
        self._clips = {clip_id: found[0] for clip_id, found in find_clips(folder, "clips", columns=_SHAPE).items()}
        self._reader = RowGroupReader(_parse_clip, cached=cached_clips)

    def __len__(self) -> int:
        return len(self._samples)

    def outline(self, index: int) -> RowOutline:
        """What is known of a row without reading its clip."""
        clip_id = self._clip_ids[index]
        shape = self._clips[clip_id][1]
        return RowOutline(sample=self._samples[index], clip_id=clip_id, pooled_bins=self._segments.pooled_bins, **shape)

    def sample(self, index: int) -> Sample:
        """The sample of a row, without reading its clip."""
        return self._samples[index]

    def row(self, index: int) -> TrainingRow:
        """A whole row; reads its clip unless it was read lately."""
        sample, clip_id = self._samples[index], self._clip_ids[index]
        clip = self._reader.read(self._clips[clip_id][0])
        segments = partial(self._segments.of, sample.sample_id, clip_id)
        return TrainingRow(sample=sample, clip_id=clip_id, read_segments=segments, **clip)


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the rows: int64 (len(ids),), a pure function of its arguments.

    The order of `ids` plays no part: each row is placed by a hash of its own id, so that the same rows are
    met in the same order however the folder was written.
    """
    keys = [hashlib.sha256(f"{seed}:{epoch}:{i}".encode()).digest() for i in ids]
    return np.asarray(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def step_indices(
    order: np.ndarray, step: int, *, rank: int, world_size: int, per_device_batch: int, accumulation: int
) -> list[list[int]]:
    """The rows of one rank in one optimizer step of an epoch: one list per micro-batch.

    `step` counts from 0 within the epoch; rows that do not fill a last step wait for another epoch. The rows
    of a step are one stretch of the epoch's order, whatever the number of workers: a run that goes on with
    other workers meets the same rows, as long as the product of workers, batch and accumulation stays.
    """
    size = world_size * per_device_batch * accumulation
    last = len(order) // size
    if not 0 <= step < last or not 0 <= rank < world_size:
        raise IndexError(f"step {step} of {last} on rank {rank} of {world_size} does not exist")
    rows = order[step * size : (step + 1) * size]
    return rows.reshape(accumulation, world_size, per_device_batch)[:, rank].tolist()


def _parse_clip(table: Any) -> dict[str, Any]:
    row = {name: table[name][0] for name in table.column_names}
    shape = (row["num_frames"].as_py(), row["height_px"].as_py(), row["width_px"].as_py(), 3)
    waveform = from_pcm(row["waveform"].as_buffer()) if row["waveform"].is_valid else None
    # A copy, because torch refuses (with a warning) to share memory that it may not write.
    frames = np.frombuffer(row["frames"].as_buffer(), np.uint8).reshape(shape).copy()
    return {"frames": frames, "sample_fps": row["sample_fps"].as_py(), "waveform": waveform}
