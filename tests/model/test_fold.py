"""Rows about one clip as one sequence, and back."""

from __future__ import annotations

import torch

from omni_model.fold import Fold
from omni_model.masks import Seen, allowed, look_at
from omni_model.sequence import Kind

CLIP_B = torch.tensor([1, 0, 1, 1, 0])
"""Rows 1 and 4 are about clip 0; rows 0, 2 and 3 about clip 1."""


def test_rows_of_a_clip_stand_side_by_side_position_by_position():
    fold = Fold.of(CLIP_B)
    assert fold.width == 3
    assert fold.row_CR.tolist() == [[1, 4, 5], [0, 2, 3]]  # 5 is the spare row
    index_BN = torch.tensor([[10 * row + n for n in range(2)] for row in range(5)])
    assert fold.fold(index_BN, -1).tolist() == [[10, 40, -1, 11, 41, -1], [0, 20, 30, 1, 21, 31]]


def test_unfolding_undoes_folding():
    generator = torch.Generator().manual_seed(0)
    for clips in (CLIP_B.tolist(), [0], [0, 0, 0], [0, 1, 2], [2, 0, 1, 2]):
        clip_B = torch.tensor(clips)
        fold = Fold.of(clip_B)
        x_BND = torch.randn(len(clip_B), 4, 3, generator=generator)
        folded = fold.fold(x_BND)
        assert folded.shape == (max(clips) + 1, 4 * fold.width, 3)
        assert torch.equal(fold.unfold(folded), x_BND)
        torch.testing.assert_close(folded.sum(), x_BND.sum())  # each row once, and zeros


def test_rows_are_blocks_that_see_the_clip_and_themselves():
    """Every pair of folded positions sees each other as in the rows apart, and never across rows."""
    rows = torch.tensor([[int(k) for k in (Kind.TEXT, Kind.TRIGGER, Kind.LATENT_VISUAL, Kind.STOP)]] * 5)
    rows[3, 2:] = int(Kind.PAD)
    seen = look_at(rows, torch.zeros_like(rows))
    fold = Fold.of(CLIP_B)
    folded = fold.fold_seen(seen)
    assert folded.blocks.tolist() == [[1, 2, 3] * 4] * 2
    rule = allowed(folded, folded, bottleneck="strict", training=True)
    apart = allowed(seen, seen, bottleneck="strict", training=True)
    for clip, of_clip in enumerate(fold.row_CR.tolist()):
        for query in range(12):
            for key in range(12):
                row, other = of_clip[query % 3], of_clip[key % 3]
                expected = row == other < 5 and bool(apart[row, query // 3, key // 3])
                assert bool(rule[clip, query, key]) == expected, (clip, query, key)
    # What is shared is block 0, which every row sees.
    clip = Seen(**{name: value[:2, :1] for name, value in vars(look_at(rows, torch.zeros_like(rows))).items()})
    sees = allowed(folded, clip, bottleneck="none", training=True)[..., 0]
    assert torch.equal(sees, folded.index >= 0)
