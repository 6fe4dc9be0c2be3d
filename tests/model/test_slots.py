"""Which hidden state is which latent, told by a backbone whose hidden state at a position is that position's code.

A position's input is (code, row, 0, 0); the backbone answers with code + 1. So a word at position i has hidden state
i + 1, and a slot that is fed the hidden state before it carries the count on.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from omni_model.batch import Batch, Encoded, MediaBatch
from omni_model.feedback import Feedback
from omni_model.sequence import IGNORE, Kind
from omni_model.unroll import UnrollConfig, unroll

WIDTH, NUM_VISUAL, NUM_AUDIO = 4, 2, 1
SLOTS = NUM_VISUAL + NUM_AUDIO
TRIGGERS = [[2, 9], [4, -1], [0, 4]]
"""The first row has words between its phases; the last one goes from one stop straight to the next trigger."""
LENGTHS = [15, 10, 9]


class Counter(nn.Module):
    """The index-coded backbone."""

    width = WIDTH

    def embed(self, input_ids):
        vectors = torch.zeros(*input_ids.shape, WIDTH)
        vectors[..., 0] = input_ids
        vectors[..., 1] = torch.arange(len(input_ids))[:, None]
        return vectors

    def encode(self, media):
        return Encoded(visual_ND=torch.zeros(0, WIDTH), audio_ND=torch.zeros(0, WIDTH))

    def run(self, inputs_BQD, *, position_ids_3BQ, mask_BQK, cache=None):
        return inputs_BQD + torch.tensor([1.0, 0, 0, 0])


@pytest.fixture
def batch() -> Batch:
    length = max(LENGTHS)
    kinds = torch.full((3, length), int(Kind.TEXT))
    for row, (triggers, end) in enumerate(zip(TRIGGERS, LENGTHS, strict=True)):
        kinds[row, end:] = Kind.PAD
        for t in triggers:
            if t >= 0:
                slots = [Kind.LATENT_VISUAL] * NUM_VISUAL + [Kind.LATENT_AUDIO] * NUM_AUDIO
                kinds[row, t : t + SLOTS + 2] = torch.tensor([Kind.TRIGGER, *slots, Kind.STOP])
    order = torch.arange(length).expand(3, -1)
    return Batch(
        input_ids_BL=order,
        kinds_BL=kinds,
        labels_BL=torch.full_like(order, IGNORE),
        position_ids_3BL=order.expand(3, -1, -1),
        source_BL=torch.full_like(order, -1),
        times_s_BL=torch.full((3, length), float("nan")),
        blocks_BL=torch.zeros_like(order),
        triggers_BP=torch.tensor(TRIGGERS),
        looks_s_BP2=torch.zeros(3, 2, 2),
        num_visual=NUM_VISUAL,
        num_audio=NUM_AUDIO,
        media=MediaBatch(
            patches=torch.zeros(0, 1176),
            grid_thw=torch.zeros(0, 3),
            mel=torch.zeros(128, 0),
            mel_lengths=torch.zeros(0, dtype=torch.long),
        ),
    )


@pytest.mark.parametrize("gradient", ["full", "kv_only", "detached"])
@pytest.mark.parametrize("engine", ["recurrent", "two_pass", "jacobi"])
def test_a_latent_is_the_hidden_state_before_its_slot_and_is_fed_there(batch, engine, gradient):
    config = UnrollConfig(engine=engine, gradient=gradient, jacobi_sweeps=SLOTS + 1, jacobi_tolerance=0.0)
    outcome = unroll(Counter(), Feedback(WIDTH), batch, config, training=True)
    for row, triggers in enumerate(TRIGGERS):
        for phase, trigger in enumerate(triggers):
            if trigger < 0:
                assert not outcome.present_BP[row, phase]
                assert not outcome.latents_BPKD[row, phase].any()
                continue
            # z_1 is the hidden state at the trigger (trigger + 1); every slot adds one.
            expected = torch.arange(1, SLOTS + 1) + trigger
            assert outcome.latents_BPKD[row, phase, :, 0].tolist() == expected.tolist()
            assert (outcome.latents_BPKD[row, phase, :, 1] == row).all()
            # Fed at trigger + k, so that the hidden state there is one more; the stop is an ordinary word again.
            slots = slice(trigger + 1, trigger + 1 + SLOTS)
            assert outcome.hidden_BLD[row, slots, 0].tolist() == (expected + 1).tolist()
        words = (batch.kinds_BL[row] == Kind.TEXT) | (batch.kinds_BL[row] == Kind.STOP)
        assert outcome.hidden_BLD[row, words, 0].tolist() == (words.nonzero()[:, 0] + 1).tolist()


def test_anchors_are_fed_at_their_slots_and_predicted_one_before(batch):
    # Anchor of row b, phase p, slot k (1-based): 1000 b + 100 p + 10 k.
    b, p, k = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(1, SLOTS + 1), indexing="ij")
    anchors = torch.zeros(3, 2, SLOTS, WIDTH)
    anchors[..., 0] = 1000 * b + 100 * p + 10 * k
    taught = replace(batch, anchors_BPKD=anchors)
    outcome = unroll(Counter(), Feedback(WIDTH), taught, UnrollConfig(engine="teacher_parallel"), training=True)
    for row, triggers in enumerate(TRIGGERS):
        for phase, trigger in enumerate(triggers):
            if trigger < 0:
                continue
            own = anchors[row, phase, :, 0]
            slots = slice(trigger + 1, trigger + 1 + SLOTS)
            assert outcome.hidden_BLD[row, slots, 0].tolist() == (own + 1).tolist()
            # The first latent is read at the phase's own trigger, not at the last slot of the phase before.
            assert outcome.latents_BPKD[row, phase, :, 0].tolist() == [trigger + 1, *(own[:-1] + 1).tolist()]
