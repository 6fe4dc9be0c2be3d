"""The adapter adds nothing and loses nothing: without latent phases our logits are the stock model's."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import Batch, collate
from omni_model.embedding import embed_batch
from omni_model.masks import allowed, look_at, with_self
from omni_model.sequence import Kind, Plan
from omni_model.stream import Stream


def _our_hidden(backbone, batch: Batch) -> torch.Tensor:
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="none", training=False))
    inputs = embed_batch(backbone, batch).inputs_BLD
    return backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)


def _stock_logits(backbone, plans: list[Plan], batch: Batch) -> torch.Tensor:
    """The stock forward, which finds positions and media places by itself from token ids."""
    mels = [p.media.mel for p in plans if p.media.mel is not None]
    longest = max((m.shape[1] for m in mels), default=0)
    features, heard = torch.zeros(len(mels), 128, longest), torch.zeros(len(mels), longest, dtype=torch.long)
    for row, mel in enumerate(mels):
        features[row, :, : mel.shape[1]], heard[row, : mel.shape[1]] = mel, 1
    return backbone.thinker(
        input_ids=batch.input_ids_BL,
        attention_mask=(batch.kinds_BL != Kind.PAD).long(),
        pixel_values_videos=torch.cat([p.media.patches for p in plans]),
        video_grid_thw=torch.tensor([p.media.grid_thw for p in plans]),
        input_features=features if mels else None,
        feature_attention_mask=heard if mels else None,
        use_audio_in_video=bool(mels),
        video_second_per_grid=torch.tensor([p.media.seconds_per_grid for p in plans]),
        use_cache=False,
    ).logits


def _answered(prompt, media, question: str) -> Plan:
    return prompt(media, question).text("The low tone: green. Answer: green", Kind.TEXT).end_turn().build()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sound", [True, False])
@torch.no_grad()
def test_logits_equal_the_stock_models(new_backbone, prompt, film, attention, sound):
    backbone = new_backbone()
    backbone.thinker.set_attn_implementation(attention)
    clips = [film(0, 2, sound), film(1, 5, sound), film(2, 3, sound)]
    plans = [_answered(prompt, clip, "Which tone?" * (i + 1)) for i, clip in enumerate(clips)]
    batch = collate(plans)
    ours, stock = backbone.logits(_our_hidden(backbone, batch)), _stock_logits(backbone, plans, batch)
    real = batch.kinds_BL != Kind.PAD
    assert stock[real].std() > 1  # lively weights: a wrong position or mask would show
    torch.testing.assert_close(ours[real], stock[real], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_comparison_is_sharp(backbone, prompt, film):
    """Positions, masks and features each move the logits by a thousand times the tolerance above."""
    batch = collate([_answered(prompt, film(0, 3), "Which tone?")])
    inputs, seen = embed_batch(backbone, batch).inputs_BLD, look_at(batch.kinds_BL, batch.blocks_BL)
    rule = allowed(seen, seen, bottleneck="none", training=False)
    logits = _logits(backbone, inputs, batch.position_ids_3BL, rule)
    late = batch.position_ids_3BL + (batch.kinds_BL == Kind.AUDIO)
    blind = allowed(seen, seen, bottleneck="strict", training=False)
    bright = inputs * (1 + 0.01 * (batch.kinds_BL == Kind.VISUAL)[..., None])
    for changed in (
        _logits(backbone, inputs, late, rule),
        _logits(backbone, inputs, batch.position_ids_3BL, blind),
        _logits(backbone, bright, batch.position_ids_3BL, rule),
    ):
        assert (changed - logits).abs().max() > 1e-2


def _logits(backbone, inputs, positions, mask) -> torch.Tensor:
    return backbone.logits(backbone.run(inputs, position_ids_3BQ=positions, mask_BQK=mask))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_feeding_in_pieces_equals_one_forward(new_backbone, prompt, film, attention):
    """Rows stop at different places, and a piece may be empty for a row."""
    backbone = new_backbone()
    backbone.thinker.set_attn_implementation(attention)
    plans = [_answered(prompt, film(i, 2 + i), "Which?") for i in range(3)]
    batch = collate(plans)
    inputs, seen = embed_batch(backbone, batch).inputs_BLD, look_at(batch.kinds_BL, batch.blocks_BL)
    whole = _our_hidden(backbone, batch)
    cuts = [[0, 9, 9, 30, len(plans[0])], [0, 50, 51, 52, len(plans[1])], [0, 1, 90, 90, len(plans[2])]]
    stream = Stream(backbone, bottleneck="none", training=False)
    for piece in range(4):
        spans = [range(row[piece], row[piece + 1]) for row in cuts]
        width = max(map(len, spans))
        index = torch.tensor([[*s, *[-1] * (width - len(s))] for s in spans])
        safe = index.clamp(min=0)
        vectors = torch.stack([x[i] for x, i in zip(inputs, safe, strict=True)])
        positions = torch.stack([axis.gather(1, safe) for axis in batch.position_ids_3BL])
        hidden = stream.feed(vectors, positions, seen.take(index))
        assert hidden.isfinite().all()
        for row, span in enumerate(spans):
            torch.testing.assert_close(hidden[row, : len(span)], whole[row, list(span)], atol=2e-5, rtol=0)


def test_features_of_another_batch_are_refused(backbone, prompt, film):
    plan = _answered(prompt, film(0, 3), "Which?")
    batch = collate([plan])
    other = collate([_answered(prompt, film(0, 2), "Which?")])
    with pytest.raises(ValueError, match="visual tower made 8 features for 12 places"):
        embed_batch(backbone, Batch(**{**vars(batch), "media": other.media}))


def test_the_groups_cover_every_weight_once(backbone):
    grouped = [id(p) for module in backbone.modules_by_group().values() for p in module.parameters()]
    assert sorted(grouped) == sorted(id(p) for p in backbone.parameters())
