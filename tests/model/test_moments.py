"""A look competes with the other stretches of its clip and of other clips, never with part of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_model.moments import Moments, tile_clip


def test_tiles_are_as_long_as_the_look_and_hold_it():
    assert tile_clip((2.0, 3.0), 6.0) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert tile_clip((2.5, 4.0), 6.0) == [(1.0, 2.5), (2.5, 4.0), (4.0, 5.5)]
    assert tile_clip((0.0, 6.0), 6.0) == [(0.0, 6.0)]
    # 0.6 is a little less than three times what 0.8 is more than it.
    tenths = np.array([(0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8)])
    assert np.array(tile_clip((0.6, 0.8), 0.8)) == pytest.approx(tenths)
    with pytest.raises(ValueError, match="end after it starts"):
        tile_clip((2.0, 2.0), 6.0)


def _anchors(clip: float, *spans: tuple[float, float]) -> dict:
    """An anchor says of which clip, which start and which length it is."""
    return {(start, end): torch.tensor([[clip, start, end - start]]) for start, end in spans}


def _names(found: tuple[torch.Tensor, int]) -> tuple[set[tuple[float, ...]], tuple[float, ...]]:
    anchors, own = found
    names = [tuple(anchor) for anchor in anchors[:, 0].tolist()]
    assert len(names) == len(set(names))  # no moment twice, however many rows are about it
    return set(names), names[own]


def test_moments_of_clip_and_batch():
    seconds = [(n, n + 1) for n in range(4)]
    x, y = _anchors(100, *seconds, (0.5, 1.5), (0, 2), (2, 4)), _anchors(200, *seconds, (1, 3))
    looks = [[(1, 2), (0, 2)], [(1, 3)], [(1.0004, 2)], []]
    moments = Moments(["x", "y", "x", "x"], looks, [x, y, x, {}])
    assert [moments.num_looks(i) for i in range(4)] == [2, 1, 1, 0]

    in_x = {(100.0, n, 1.0) for n in range(4)}
    for row in (0, 2):
        assert _names(moments.of_clip(row, 0)) == (
            in_x,
            (100.0, 1.0, 1.0),
        )  # without 0.5 to 1.5, half of which is its own
        assert _names(moments.of_batch(row, 0)) == (in_x | {(200.0, n, 1.0) for n in range(4)}, (100.0, 1.0, 1.0))
    assert _names(moments.of_clip(0, 1)) == ({(100.0, 0.0, 2.0), (100.0, 2.0, 2.0)}, (100.0, 0.0, 2.0))
    assert _names(moments.of_batch(0, 1))[0] == {(100.0, 0.0, 2.0), (100.0, 2.0, 2.0), (200.0, 1.0, 2.0)}
    assert _names(moments.of_clip(1, 0)) == ({(200.0, 1.0, 2.0)}, (200.0, 1.0, 2.0))


def test_a_look_without_an_anchor_is_named():
    with pytest.raises(ValueError, match=r"clip x has no anchor of second 5 to 6"):
        Moments(["x"], [[(5, 6)]], [_anchors(1, (0, 1))])
