"""Which moments a look has to be told apart from: those of its own clip, and those of all clips of a batch."""

# M = moments, S = spans of one clip, K = slots, D = model width.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from omni_model.rows import PreparedRow

Span = tuple[float, float]
"""Start and end in seconds."""
_Key = tuple[str, float, float]
_SAME_S = 2e-3
"""Times as near as this are the same: manifests round to a millisecond."""


def tile_clip(look: Span, duration_s: float) -> list[Span]:
    """Cut a clip into stretches as long as the look, the look itself among them; what is left at the ends is dropped.

    Raises `ValueError` for a look without length.
    """
    start_s, end_s = look
    length_s = end_s - start_s
    if length_s <= 0:
        raise ValueError(f"a look must end after it starts, got {start_s} to {end_s} s; correct it in the manifest")
    before, after = int(start_s / length_s + 1e-6), int(max(duration_s - end_s, 0.0) / length_s + 1e-6)
    return [
        look if n == 0 else (start_s + n * length_s, start_s + (n + 1) * length_s) for n in range(-before, after + 1)
    ]


def moments_of(rows: Sequence[PreparedRow], encode: Callable[[PreparedRow, list[Span]], np.ndarray]) -> Moments:
    """The moments of a batch, where nothing but the looks is known: each look's clip in stretches of its length.

    `encode` takes a row and spans of its clip to anchors (S, K, D); it is called once a clip.
    """
    looks = [[(look.start_s, look.end_s) for look in row.sample.looks] for row in rows]
    wanted: dict[str, dict[Span, None]] = {}
    for row, of_row in zip(rows, looks, strict=True):
        spans = wanted.setdefault(row.clip_id, {})
        for look in of_row:
            spans |= dict.fromkeys(tile_clip(look, len(row.frames) / row.sample_fps))
    anchors: list[dict[Span, torch.Tensor]] = []
    for row in rows:
        asked = list(wanted.pop(row.clip_id, {}))
        found = torch.from_numpy(encode(row, asked)) if asked else []
        anchors.append(dict(zip(asked, found, strict=True)))
    return Moments([row.clip_id for row in rows], looks, anchors)


class Moments:
    """The anchors of a batch's moments, and for every look the ones that it competes with.

    Only moments as long as the look compete with it, because length alone would tell others apart, and none of its own
    clip that shares some of its time.
    """

    def __init__(
        self,
        clip_ids: Sequence[str],
        looks: Sequence[Sequence[Span]],
        anchors: Sequence[Mapping[Span, torch.Tensor]],
    ) -> None:
        """Row by row: the clip, what the trajectory looks at, and anchors (K, D) of the clip's moments.

        Anchors of one clip may be spread over its rows. Raises `ValueError` for a look without an anchor.
        """
        self._anchors = {
            _key(clip, span): anchor
            for clip, of_row in zip(clip_ids, anchors, strict=True)
            for span, anchor in of_row.items()
        }
        self._looks = [[_key(clip, look) for look in of_row] for clip, of_row in zip(clip_ids, looks, strict=True)]
        if missing := [key for of_row in self._looks for key in of_row if key not in self._anchors]:
            clip, start_s, end_s = missing[0]
            raise ValueError(
                f"clip {clip} has no anchor of second {start_s} to {end_s}, which is looked at; encode it too"
            )

    def num_looks(self, row: int) -> int:
        """How often the row's trajectory looks."""
        return len(self._looks[row])

    def of_clip(self, row: int, look: int) -> tuple[torch.Tensor, int]:
        """Anchors (M, K, D) of the look and of its rivals in its own clip, and which of them is the look itself."""
        own = self._looks[row][look]
        return self._take([key for key in self._rivals(own) if key[0] == own[0]], own)

    def of_batch(self, row: int, look: int) -> tuple[torch.Tensor, int]:
        """The same over all clips of the batch."""
        own = self._looks[row][look]
        return self._take(self._rivals(own), own)

    def _rivals(self, own: _Key) -> list[_Key]:
        return [key for key in self._anchors if key == own or (_as_long(key, own) and not _overlap(key, own))]

    def _take(self, keys: list[_Key], own: _Key) -> tuple[torch.Tensor, int]:
        return torch.stack([self._anchors[key] for key in keys]).float().cpu(), keys.index(own)


def _key(clip_id: str, span: Span) -> _Key:
    return clip_id, round(span[0], 3), round(span[1], 3)


def _as_long(first: _Key, second: _Key) -> bool:
    return abs((first[2] - first[1]) - (second[2] - second[1])) <= _SAME_S


def _overlap(first: _Key, second: _Key) -> bool:
    return first[0] == second[0] and min(first[2], second[2]) - max(first[1], second[1]) > _SAME_S
