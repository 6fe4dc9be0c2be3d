"""Naming moments straight from the towers: the mean feature of a moment, one linear head a question."""

from __future__ import annotations

import math

import pytest
import torch

from omni_model.batch import collate
from omni_model.embedding import embed_batch
from omni_model.perception import Perception, Shown, Words

WORDS = Words(visual=(2, 3), audio=(2,))


@pytest.fixture
def batch(prompt, film):
    """Clips of two and three seconds: 4 visual and 25 audio tokens a second."""
    return collate([prompt(film(0, 2)).build(), prompt(film(1, 3)).build()])


def _moment(start_s: float, *words: int) -> Shown:
    return Shown(start_s=start_s, end_s=start_s + 1.0, visual=words[:2], audio=words[2:])


def _heads_that_read(first: int) -> Perception:
    """Each head's word w has the score w + 1 times feature `first`."""
    heads = Perception(64, WORDS)
    for head in (*heads.visual, *heads.audio):
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.weight[:, first] = torch.arange(1.0, head.out_features + 1)
    return heads


def test_the_loss_is_the_mean_over_moments_and_questions_by_hand(backbone, batch):
    """Feature 0 of a token is its second, counted over both clips: so is a moment's mean, and a score is a multiple."""
    encoded = embed_batch(backbone, batch).encoded
    visual, audio = torch.zeros_like(encoded.visual_ND), torch.zeros_like(encoded.audio_ND)
    visual[:, 0] = torch.arange(5).repeat_interleave(4)
    audio[:, 0] = torch.arange(5).repeat_interleave(25)
    counted = type(encoded)(visual_ND=visual, audio_ND=audio)
    shown = [[_moment(1.0, 1, 0, 0)], [_moment(0.0, 0, 0, 1), _moment(2.0, 1, 2, 0)]]

    def surprise(second: float, word: int, count: int) -> float:
        scores = [math.exp(second * w) for w in range(1, count + 1)]
        return -math.log(scores[word] / sum(scores))

    by_hand = [
        *(surprise(s, w, 2) for s, w in ((1, 1), (2, 0), (4, 1))),
        *(surprise(s, w, 3) for s, w in ((1, 0), (2, 0), (4, 2))),
        *(surprise(s, w, 2) for s, w in ((1, 0), (2, 1), (4, 0))),
    ]
    loss = _heads_that_read(0)(counted, batch, shown)
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 9, abs=1e-5)


def test_the_towers_learn_from_it(new_backbone, batch):
    backbone = new_backbone()
    torch.manual_seed(0)
    loss = Perception(64, WORDS)(embed_batch(backbone, batch).encoded, batch, [[_moment(0.0, 1, 2, 1)], []])
    loss.backward()
    for group in ("vision", "audio"):
        grads = [p.grad for p in backbone.modules_by_group()[group].parameters() if p.grad is not None]
        assert max(float(grad.abs().max()) for grad in grads) > 1e-4, group
    assert all(p.grad is None or not p.grad.any() for p in backbone.thinker.lm_head.parameters())


def test_a_batch_without_moments_teaches_nothing(new_backbone, batch):
    loss = Perception(64, WORDS)(embed_batch(new_backbone(), batch).encoded, batch, [[], []])
    assert float(loss.detach()) == 0.0
    loss.backward()
