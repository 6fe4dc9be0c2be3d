"""The segments of a preprocessed folder: what a sample refers to, and what else there is in its clip."""

# S = looks of one sample, M = other segments of its clip, N = segments of a clip.

from __future__ import annotations

from collections import ChainMap
from typing import Any

import pyarrow as pa

from omni_platform.data.parts import read_column, read_rows, to_segment_features
from omni_platform.data.row_groups import RowGroupReader, find_clips
from omni_platform.data.segments import overlap, same_span
from omni_platform.schema import SegmentFeatures


class ClipAnchors:
    """Which segments are whose, in memory, and what the towers made of them, read clip by clip."""

    def __init__(self, folder: str, *, cached_clips: int = 32) -> None:
        found = find_clips(folder, "anchors")
        self._places = {clip_id: [place for place, _ in of_clip] for clip_id, of_clip in found.items()}
        self.pooled_bins = (_pooled_bins(folder, "visual"), _pooled_bins(folder, "audio"))
        """In how many bins visual and audio features were pooled; None where every segment's are kept as they are."""
        self._reader = RowGroupReader(_parse_segments, cached=cached_clips)
        self._segment_ids: dict[str, list[str]] = {}
        """Clip id -> its segments, by time."""
        self._once: dict[str, list[int]] = {}
        """Clip id -> places in that list, each moment once."""
        self._looks: dict[str, list[int]] = {}
        """Sample id -> places of its looks, in the order of its trajectory."""
        self._others: dict[str, list[int]] = {}
        """Sample id -> places of the moments that it does not look at."""
        for clip_id, rows in _segments_by_clip(folder).items():
            self._segment_ids[clip_id] = [row["segment_id"] for row in rows]
            self._sort_out(clip_id, rows)

    def of(self, sample_id: str, clip_id: str) -> tuple[tuple[SegmentFeatures, ...], tuple[SegmentFeatures, ...]]:
        """A sample's own S segments, look by look, and the M others of its clip, in order of time.

        What shares time with a look of the sample is none of the others: it shows some of what the look shows.
        """
        if clip_id not in self._segment_ids:
            return (), ()
        features = ChainMap(*(self._reader.read(place) for place in self._places[clip_id]))
        ids = self._segment_ids[clip_id]
        own, others = self._looks.get(sample_id, []), self._others.get(sample_id, self._once[clip_id])
        return tuple(features[ids[i]] for i in own), tuple(features[ids[i]] for i in others)

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


def _parse_segments(table: pa.Table) -> dict[str, SegmentFeatures]:
    return {row["segment_id"]: to_segment_features(row) for row in table.to_pylist()}


def _pooled_bins(folder: str, sense: str) -> int | None:
    columns = (read_column(folder, "anchors", f"{sense}_{name}") for name in ("features", "bins"))
    return next((bins for features, bins in zip(*columns, strict=True) if features >= 2 * bins), None)


def _segments_by_clip(folder: str) -> dict[str, list[dict[str, Any]]]:
    """Clip id -> its rows of the segments table by span; equal ones by id, whatever part they are in."""
    by_clip: dict[str, list[dict[str, Any]]] = {}
    rows = read_rows(folder, "segments").to_pylist()
    for row in sorted(rows, key=lambda row: (row["start_s"], row["end_s"], row["segment_id"])):
        by_clip.setdefault(row["clip_id"], []).append(row)
    return by_clip
