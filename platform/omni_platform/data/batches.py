"""The trainer's side of a preprocessed folder: any row at any time, and which rows belong to which step.

Nothing here has a position to save: the rows of a step are a function of seed, epoch and step, so that
resuming is a jump, with any number of workers.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq

from omni_platform import storage
from omni_platform.artifacts import Card, read_card
from omni_platform.data.clip_anchors import ClipAnchors
from omni_platform.data.parts import from_pcm, read_rows, to_sample
from omni_platform.schema import Sample

_OPEN_FILES = 16


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One sample with its clip, the anchors of its looks and those of other segments of the clip."""

    sample: Sample
    clip_id: str
    frames: np.ndarray
    """uint8 (F, H, W, 3)."""
    sample_fps: float
    waveform: np.ndarray | None
    """float32 (N,) at 16 kHz, or None for a mute clip."""
    anchors: np.ndarray
    """float32 (S, K, D): one block per look, visual rows first; S is 0 for a sample without looks."""
    other_anchors: np.ndarray
    """float32 (M, K, D): segments of the clip that share no time with the sample's looks, each once, in their order."""


class TrainingRows:
    """Random access to the rows of a complete preprocessed folder, local or `s3://`.

    Samples and anchors are held in memory; clips are read by row group and a few are kept. Not for sharing
    between threads; pickles cheaply (a worker opens its own files).
    """

    @classmethod
    def open(cls, folder: str | Path, *, cached_clips: int = 32) -> TrainingRows:
        """Read samples, anchors and the index of clips. Raises `CardError` for an incomplete folder."""
        return cls(storage.absolute(folder), cached_clips=cached_clips)

    def __init__(self, folder: str, *, cached_clips: int) -> None:
        self.folder = folder
        self.card: Card = read_card(folder)
        # In the order of their ids, not of the parts, which depend on how the work was divided.
        samples = sorted(read_rows(folder, "samples").to_pylist(), key=lambda row: row["sample_id"])
        self._samples = [to_sample(row) for row in samples]
        self.ids: list[str] = [sample.sample_id for sample in self._samples]
        """Sample ids, sorted: row i has id i."""
        self._clip_ids = [row["clip_id"] for row in samples]
        self._lengths = [row.get("length") for row in samples]  # absent in folders of schema version 1
        self._anchors = ClipAnchors(folder)
        self._places = _find_clips(folder)
        self._clips = _ClipReader(cached_clips)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def lengths(self) -> Sequence[int]:
        """Positions of every row's sequence, by row number. Raises `ValueError` where they were not measured."""
        known = [length for length in self._lengths if length is not None]
        if len(known) < len(self._lengths):
            raise ValueError(
                f"{self.folder} does not tell how long its samples are (schema version {self.card.schema_version}); "
                "preprocess the manifest again, or train without grouping by length"
            )
        return known

    def sample(self, index: int) -> Sample:
        """The sample of a row, without reading its clip."""
        return self._samples[index]

    def row(self, index: int) -> TrainingRow:
        """A whole row; reads its clip unless it was read lately."""
        sample, clip_id = self._samples[index], self._clip_ids[index]
        clip = self._clips.read(*self._places[clip_id])
        anchors, others = self._anchors.of(sample.sample_id, clip_id)
        return TrainingRow(sample=sample, clip_id=clip_id, anchors=anchors, other_anchors=others, **clip)


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


def _find_clips(folder: str) -> dict[str, tuple[str, int]]:
    """Clip id -> (file, row group)."""
    places: dict[str, tuple[str, int]] = {}
    for uri in storage.list_files(storage.join(folder, "clips"), ".parquet"):
        with storage.open_read(uri) as file:
            ids = pq.read_table(file, columns=["clip_id"])["clip_id"].to_pylist()
        places |= {clip_id: (uri, group) for group, clip_id in enumerate(ids)}
    return places


class _ClipReader:
    """Reads row groups of clip files; remembers the last clips and open files."""

    def __init__(self, cached_clips: int) -> None:
        self._cached_clips = cached_clips
        self._clips: OrderedDict[tuple[str, int], dict[str, Any]] = OrderedDict()
        self._files: OrderedDict[str, tuple[IO[bytes], pq.ParquetFile]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"cached_clips": self._cached_clips}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["cached_clips"])

    def read(self, uri: str, group: int) -> dict[str, Any]:
        """Frames, rate and waveform of one clip; the arrays are shared between calls."""
        key = (uri, group)
        if key in self._clips:
            self._clips.move_to_end(key)
            return self._clips[key]
        self._clips[key] = clip = _parse_clip(self._open(uri).read_row_group(group))
        while len(self._clips) > self._cached_clips:
            self._clips.popitem(last=False)
        return clip

    def _open(self, uri: str) -> pq.ParquetFile:
        if uri not in self._files:
            handle = storage.open_read(uri)
            self._files[uri] = (handle, pq.ParquetFile(handle))
        self._files.move_to_end(uri)
        while len(self._files) > _OPEN_FILES:
            _, (handle, _) = self._files.popitem(last=False)
            handle.close()
        return self._files[uri][1]


def _parse_clip(table: Any) -> dict[str, Any]:
    row = {name: table[name][0] for name in table.column_names}
    shape = (row["num_frames"].as_py(), row["height_px"].as_py(), row["width_px"].as_py(), 3)
    waveform = from_pcm(row["waveform"].as_buffer()) if row["waveform"].is_valid else None
    # A copy, because torch refuses (with a warning) to share memory that it may not write.
    frames = np.frombuffer(row["frames"].as_buffer(), np.uint8).reshape(shape).copy()
    return {"frames": frames, "sample_fps": row["sample_fps"].as_py(), "waveform": waveform}
