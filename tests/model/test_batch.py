"""Several plans as one batch."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import collate
from omni_model.sequence import IGNORE, Kind


def test_rows_are_padded_on_the_right_and_otherwise_untouched(mixed_plans):
    plans = mixed_plans()
    batch = collate(plans)
    for row, plan in enumerate(plans):
        n = len(plan)
        assert torch.equal(batch.input_ids_BL[row, :n], plan.input_ids)
        assert torch.equal(batch.kinds_BL[row, :n], plan.kinds)
        assert torch.equal(batch.labels_BL[row, :n], plan.labels)
        assert torch.equal(batch.position_ids_3BL[:, row, :n], plan.position_ids)
        assert batch.kinds_BL[row, n:].eq(Kind.PAD).all()
        assert batch.labels_BL[row, n:].eq(IGNORE).all()
        assert batch.source_BL[row, n:].eq(-1).all()
        assert batch.times_s_BL[row, n:].isnan().all()
        phases = len(plan.spans)
        assert batch.triggers_BP[row].tolist() == [*(s.trigger for s in plan.spans), *[-1] * (3 - phases)]
        assert batch.looks_s_BP2[row, :phases].tolist() == [[s.start_s, s.end_s] for s in plan.spans]
    assert (batch.num_visual, batch.num_audio, batch.num_slots) == (3, 2, 5)


def test_every_media_token_takes_its_own_clips_feature(lay_out, film, sample_with, latent):
    """Rows of the joined tower output, with a silent clip in between."""
    clips = [film(0, 2), film(1, 3, False), film(2, 2)]
    plans = [lay_out(latent(), clip, sample_with(1)) for clip in clips]
    batch = collate(plans)
    for kind, counts in ((Kind.VISUAL, [8, 12, 8]), (Kind.AUDIO, [50, 0, 50])):
        start = 0
        for row, count in enumerate(counts):
            rows = batch.source_BL[row, batch.kinds_BL[row] == kind]
            assert rows.tolist() == list(range(start, start + count))
            start += count
    assert batch.media.mel_lengths.tolist() == [200, 200]
    assert batch.media.grid_thw.tolist() == [[2, 4, 4], [3, 4, 4], [2, 4, 4]]


def test_anchors_stand_at_their_phases(mixed_plans, random_anchors):
    plans = mixed_plans()
    anchors = random_anchors(plans)
    batch = collate(plans, anchors=anchors)
    assert batch.anchors_BPKD.shape == (3, 3, 5, 64)
    for row, targets in enumerate(anchors):
        assert torch.equal(batch.anchors_BPKD[row, : len(targets)], targets)
        assert not batch.anchors_BPKD[row, len(targets) :].any()


def test_phases_of_one_batch_have_equal_slot_counts(lay_out, film, sample_with, latent):
    plans = [lay_out(latent(num_visual=k), film(), sample_with(1)) for k in (2, 3)]
    with pytest.raises(ValueError, match=r"equal slot counts, got \[\(2, 2\), \(3, 2\)\]"):
        collate(plans)


def test_anchors_that_do_not_belong_are_refused(mixed_plans, random_anchors):
    """Counts that do not match raise, never train on less (invariant 13)."""
    plans = mixed_plans()
    anchors = random_anchors(plans)
    for row, wrong in ((1, anchors[1][:2]), (0, torch.cat([anchors[0]] * 2))):
        changed = [*anchors[:row], wrong, *anchors[row + 1 :]]
        phases = len(plans[row].spans)
        with pytest.raises(ValueError, match=f"row {row} of the batch has {phases} latent phases but anchors for"):
            collate(plans, anchors=changed)
    with pytest.raises(ValueError, match="6 slots a phase but the method wants 5"):
        collate(plans, anchors=random_anchors(plans, slots=6))
    with pytest.raises(ValueError, match="zip"):
        collate(plans, anchors=anchors[:2])


def test_a_batch_moves_whole(mixed_plans, random_anchors):
    plans = mixed_plans()
    batch = collate(plans, anchors=random_anchors(plans)).to("meta")
    tensors = [v for v in vars(batch).values() if isinstance(v, torch.Tensor)] + list(vars(batch.media).values())
    assert len(tensors) == 14
    assert {t.device.type for t in tensors} == {"meta"}
    assert collate(plans).to("cpu").anchors_BPKD is None


def test_rows_about_one_clip_hold_it_once(lay_out, film, sample_with, latent):
    """Media tokens of every row point at their own clip's features, wherever its rows stand in the batch."""
    clips = [film(0, 2), film(1, 3), film(0, 2), film(1, 3), film(0, 2)]
    plans = [lay_out(latent(), clip, sample_with(1 + i % 2)) for i, clip in enumerate(clips)]
    batch = collate(plans, share_clips=True)
    assert batch.shared is not None
    assert batch.shared.first_C.tolist() == [0, 1]
    assert batch.shared.clip_B.tolist() == [0, 1, 0, 1, 0]
    assert batch.shared.lengths_C.tolist() == [plans[0].prefix_length, plans[1].prefix_length]
    assert batch.media.grid_thw.tolist() == [[2, 4, 4], [3, 4, 4]]
    for row, clip in enumerate((0, 1, 0, 1, 0)):
        for kind, starts, counts in ((Kind.VISUAL, (0, 8), (8, 12)), (Kind.AUDIO, (0, 50), (50, 75))):
            source = batch.source_BL[row, batch.kinds_BL[row] == kind]
            assert source.tolist() == list(range(starts[clip], starts[clip] + counts[clip]))
    assert collate(plans[:2], share_clips=True).shared is None
    moved = batch.to("meta")
    assert {t.device.type for t in (*vars(moved.shared).values(), *vars(moved.media).values())} == {"meta"}
