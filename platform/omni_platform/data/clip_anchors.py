"""The anchors of a preprocessed folder in memory: of what a sample looks at, and of what else there is in its clip."""

# S = looks of one sample, M = other segments of its clip, N = segments of a clip, K = anchors of one, D = their width.

from __future__ import annotations

from typing import Any

import numpy as np

from omni_platform.data.parts import read_rows
from omni_platform.data.segments import overlap, same_span


class ClipAnchors:
    """One block of anchors per clip, its segments in the order of time, and which of them are whose."""

    def __init__(self, folder: str) -> None:
        anchors = _read_anchors(folder)
        self._empty = np.zeros((0, *next((a.shape for a in anchors.values()), (0, 0))), np.float32)
        self._blocks: dict[str, np.ndarray] = {}
        """Clip id -> float32 (N, K, D)."""
        self._once: dict[str, list[int]] = {}
        """Clip id -> places in its block, each moment once."""
        self._looks: dict[str, list[int]] = {}
        """Sample id -> places of its looks, in the order of its trajectory."""
        self._others: dict[str, list[int]] = {}
        """Sample id -> places of the moments that it does not look at."""
        for clip_id, rows in _segments_by_clip(folder).items():
            self._blocks[clip_id] = np.stack([anchors[row["segment_id"]] for row in rows])
            self._sort_out(clip_id, rows)

    def of(self, sample_id: str, clip_id: str) -> tuple[np.ndarray, np.ndarray]:
        """A sample's own anchors, float32 (S, K, D), look by look; the others of its clip, (M, K, D), in order of time.

        What shares time with a look of the sample is none of the others: it shows some of what the look shows.
        """
        if clip_id not in self._blocks:
            return self._empty, self._empty
        block_NKD, once = self._blocks[clip_id], self._once[clip_id]
        return block_NKD[self._looks.get(sample_id, [])], block_NKD[self._others.get(sample_id, once)]

    def _sort_out(self, clip_id: str, rows: list[dict[str, Any]]) -> None:
        spans = [(row["start_s"], row["end_s"]) for row in rows]
        once: list[int] = []
        by_sample: dict[str, list[tuple[int, int]]] = {}
        for place, row in enumerate(rows):
            if not any(same_span(spans[place], spans[i]) for i in once):
                once.append(place)
            if row["sample_id"] is not None:
                by_sample.setdefault(row["sample_id"], []).append((row["index"], place))
        self._once[clip_id] = once
        for sample_id, indexed in by_sample.items():
            own = [place for _, place in sorted(indexed)]
            self._looks[sample_id] = own
            self._others[sample_id] = [i for i in once if not any(overlap(spans[i], spans[j]) for j in own)]


def _read_anchors(folder: str) -> dict[str, np.ndarray]:
    """Segment id -> float32 (K, D)."""
    table = read_rows(folder, "anchors")
    columns = (table[name].to_pylist() for name in ("segment_id", "num_visual", "num_audio", "dim"))
    return {
        segment_id: table["anchors"][i].values.to_numpy().reshape(num_visual + num_audio, dim)
        for i, (segment_id, num_visual, num_audio, dim) in enumerate(zip(*columns, strict=True))
    }


def _segments_by_clip(folder: str) -> dict[str, list[dict[str, Any]]]:
    """Clip id -> its rows of the segments table by span; equal ones by id, whatever part they are in."""
    by_clip: dict[str, list[dict[str, Any]]] = {}
    rows = read_rows(folder, "segments").to_pylist()
    for row in sorted(rows, key=lambda row: (row["start_s"], row["end_s"], row["segment_id"])):
        by_clip.setdefault(row["clip_id"], []).append(row)
    return by_clip
