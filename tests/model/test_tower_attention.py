"""The towers' attention over all sequences of one length at once: the same as the stock one, sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import join_media
from omni_model.tower_attention import TOWER_ATTENTION, attend


@pytest.fixture
def towers(new_backbone):
    backbone = new_backbone()
    return backbone, (backbone.thinker.model.visual, backbone.thinker.model.audio_tower)


def _media(film, seconds: tuple[int, ...]):
    return join_media([film(i, length) for i, length in enumerate(seconds)])


def _run(backbone, towers, media, name: str):
    for tower in towers:
        tower.config._attn_implementation = name
    backbone.zero_grad()
    encoded = backbone.encode(media)
    (encoded.visual_ND.square().sum() + encoded.audio_ND.square().sum()).backward()
    grads = {n: p.grad.clone() for tower in towers for n, p in tower.named_parameters() if p.grad is not None}
    return encoded, grads


@pytest.mark.parametrize("seconds", [(2, 2), (3, 2, 4)])
def test_towers_make_what_the_stock_attention_makes(towers, film, seconds):
    """Of clips of one length and of several, the odd one first; on the way back too."""
    backbone, both = towers
    assert [tower.config._attn_implementation for tower in both] == [TOWER_ATTENTION] * 2
    media = _media(film, seconds)
    ours, our_grads = _run(backbone, both, media, TOWER_ATTENTION)
    stock, stock_grads = _run(backbone, both, media, "sdpa")
    torch.testing.assert_close(ours.visual_ND, stock.visual_ND, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.audio_ND, stock.audio_ND, atol=1e-5, rtol=1e-5)
    assert our_grads.keys() == stock_grads.keys() and len(our_grads) > 50
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad, stock_grads[name], atol=1e-4, rtol=1e-4, msg=name)


def test_a_position_sees_its_own_sequence_alone():
    """By hand: with one value a sequence, whatever the weights, that value comes out."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 7, 4)
    sequence = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    value = sequence.float()[None, None, :, None].expand(1, 2, 7, 4)
    starts = torch.tensor([0, 3, 4, 7])
    out, _ = attend(torch.nn.Module(), query, key, value, None, scaling=0.5, cu_seq_lens_q=starts)
    assert out.shape == (1, 7, 2, 4)
    torch.testing.assert_close(out[0, :, 0, 0], sequence.float())
