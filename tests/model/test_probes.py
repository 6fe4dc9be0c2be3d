"""Controls replace exactly what they say, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omni_model.generate import Event, Rollout
from omni_model.probes import blind, choose_donors, control, paired_difference
from omni_model.reason import Ask

WIDTH = 6


def _rollout(number: int, phases: int) -> Rollout:
    """Slot s of phase p of rollout n is fed 100 n + 10 p + s."""
    events = [
        Event(type="latent", position_ids=(0, 0, 0), vector=torch.full((WIDTH,), 100.0 * number + 10 * p + s), phase=p)
        for p in range(phases)
        for s in range(3)
    ]
    return Rollout(events=tuple(events), finish_reason="stop")


OWN = [_rollout(0, 1), _rollout(1, 2), _rollout(2, 0)]
VECTORS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [5.0], [0.1]])


def test_zero_and_noise():
    assert not control("zero", OWN)(0, 0, VECTORS).any()
    noise = control("noise", OWN, seed=1)(0, 0, VECTORS)
    torch.testing.assert_close(noise.norm(dim=-1), VECTORS.norm(dim=-1))
    assert torch.cosine_similarity(noise, VECTORS).abs().max() < 0.99
    assert torch.equal(noise, control("noise", OWN, seed=1)(0, 0, VECTORS))


def test_other_rows_latents_of_the_same_phase_or_the_last_one():
    override = control("other", OWN, donors=[1, 0, 1])
    assert override(0, 2, VECTORS)[:, 0].tolist() == [102, 2, 102]
    assert override(1, 0, VECTORS)[:, 0].tolist() == [110, 0, 110]  # row 0 looked only once
    nothing = control("other", OWN, donors=[2, 2, 0])
    assert nothing(0, 0, VECTORS)[:, 0].tolist() == [0, 0, 0]  # a donor that never looked


def test_gold_is_the_anchors():
    anchors = [torch.arange(3.0)[None, :, None].expand(1, 3, WIDTH) + 10 * n for n in range(3)]
    override = control("gold", OWN, anchors=anchors)
    assert override(0, 1, VECTORS)[:, 0].tolist() == [1, 11, 21]
    assert override(1, 2, VECTORS)[:, 0].tolist() == [2, 12, 22]


def test_controls_say_what_they_lack():
    with pytest.raises(ValueError, match="needs a donor row"):
        control("other", OWN)
    with pytest.raises(ValueError, match="needs the anchors"):
        control("gold", OWN)


def test_donors_are_about_another_clip_and_the_same_kind_of_question_where_possible():
    clips, groups = ["a", "a", "b", "b", "c"], ["x", "y", "y", "z", "x"]
    donors = choose_donors(clips, groups)
    assert all(clips[i] != clips[j] for i, j in enumerate(donors))
    assert donors == [4, 2, 1, 4, 0]
    with pytest.raises(ValueError, match="at least two clips"):
        choose_donors(["a", "a"], ["x", "y"])


def test_blinding_keeps_the_sequence_and_takes_the_senses():
    ask = Ask(
        question="Which?",
        frames=np.full((4, 8, 8, 3), 7, np.uint8),
        sample_fps=2.0,
        waveform=np.full(32_000, 0.5, np.float32),
    )
    for which, seen, heard in (("no_audio", True, False), ("no_video", False, True), ("neither", False, False)):
        changed = blind(ask, which)
        assert changed.frames.shape == ask.frames.shape
        assert changed.waveform.shape == ask.waveform.shape
        assert (bool(changed.frames.any()), bool(changed.waveform.any())) == (seen, heard)


def test_a_paired_difference_has_an_interval_around_its_mean():
    first, second = [1.0] * 30 + [0.0] * 10, [0.0] * 20 + [1.0] * 20
    interval = paired_difference(first, second)
    assert interval.mean == pytest.approx(0.25)
    assert interval.low < 0.25 < interval.high
    same = paired_difference(first, first)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least one question"):
        paired_difference([], [])
