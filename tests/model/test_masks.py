"""Who sees whom, position by position, and that what must not be seen changes nothing."""

from __future__ import annotations

import pytest
import torch

from omni_model.batch import collate
from omni_model.embedding import embed_batch
from omni_model.masks import allowed, look_at, with_self
from omni_model.sequence import Kind, Plan, PlanBuilder

LETTERS = {
    "t": Kind.TEMPLATE,
    "m": Kind.MARKER,
    "v": Kind.VISUAL,
    "a": Kind.AUDIO,
    "q": Kind.QUESTION,
    "w": Kind.TEXT,
    "T": Kind.TRIGGER,
    "V": Kind.LATENT_VISUAL,
    "A": Kind.LATENT_AUDIO,
    "s": Kind.STOP,
    ".": Kind.PAD,
}
ROW = "tmvaqwTVAswTVAsw."
FIRST_TRIGGER = ROW.index("T")


def _look(row: str, blocks: str | None = None):
    kinds = torch.tensor([[int(LETTERS[x]) for x in row]])
    numbers = [int(b) for b in blocks] if blocks else [0] * len(row)
    return look_at(kinds, torch.tensor([numbers]))


def _expected(query: int, key: int, bottleneck: str, training: bool) -> bool:
    """The rules in words, one after another."""
    q, k = ROW[query], ROW[key]
    if "." in (q, k) or key > query:
        return False
    acts = bottleneck in ("answer", "strict") or (bottleneck == "published" and training)
    word_after = query > FIRST_TRIGGER and q not in "TVA"
    if acts and word_after and k in "va":
        return False
    if bottleneck == "strict":
        if q in "tmqws" and k in "va":
            return False
        if word_after and k == "T":
            return False
    return True


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("bottleneck", ["none", "published", "answer", "strict"])
def test_every_pair_of_positions(bottleneck, training):
    seen = _look(ROW)
    rule = allowed(seen, seen, bottleneck=bottleneck, training=training)[0]
    for query in range(len(ROW)):
        for key in range(len(ROW)):
            expected = _expected(query, key, bottleneck, training)
            assert bool(rule[query, key]) == expected, (ROW[query], query, ROW[key], key)


@pytest.mark.parametrize("bottleneck", ["none", "answer", "strict"])
def test_hidden_latents_are_seen_by_latents_alone(bottleneck):
    """Words, triggers and stops do not see slots; slots see each other as before, and nothing else changes."""
    seen = _look(ROW)
    rule, hiding = (
        allowed(seen, seen, bottleneck=bottleneck, training=False, hide_latents=hide)[0] for hide in (False, True)
    )
    for query, q in enumerate(ROW):
        for key, k in enumerate(ROW):
            expected = bool(rule[query, key]) and not (k in "VA" and q not in "VA")
            assert bool(hiding[query, key]) == expected, (q, query, k, key)
    stop, after, slot = 9, 10, 8
    assert rule[stop, slot] and rule[after, slot]
    assert hiding[slot, slot - 1] and not hiding[after, slot] and not hiding[ROW.index("T", 8), slot]


def test_the_table_of_bottlenecks_says_what_it_should():
    """A few pairs by hand, so that the rules above are not merely the code said twice."""
    at = {"question": 4, "before": 5, "trigger": 6, "slot": 7, "stop": 9, "after": 10, "trigger2": 11, "slot2": 12}
    table = {
        # (query, key): bottlenecks that hide the key in training, and at inference
        ("question", 2): ("strict", "strict"),
        ("before", 2): ("strict", "strict"),
        ("trigger", 2): ("", ""),
        ("slot", 3): ("", ""),
        ("stop", 3): ("published answer strict", "answer strict"),
        ("after", 3): ("published answer strict", "answer strict"),
        ("after", 4): ("", ""),
        ("after", 5): ("", ""),
        ("after", 6): ("strict", "strict"),
        ("after", 7): ("", ""),
        ("trigger2", 2): ("", ""),
        ("trigger2", 6): ("", ""),
        ("slot2", 3): ("", ""),
        ("slot2", 10): ("", ""),
    }
    seen = _look(ROW)
    for bottleneck in ("none", "published", "answer", "strict"):
        for column, training in enumerate((True, False)):
            rule = allowed(seen, seen, bottleneck=bottleneck, training=training)[0]
            for (query, key), hidden in table.items():
                sees = bottleneck not in hidden[column].split()
                assert bool(rule[at[query], key]) == sees, (query, key, bottleneck, training)


def test_questions_packed_behind_a_clip_see_it_and_themselves():
    row, blocks = "tmvaqwqqw", "000011222"
    seen = _look(row, blocks)
    rule = allowed(seen, seen, bottleneck="none", training=True)[0]
    for query in range(len(row)):
        for key in range(len(row)):
            shared = blocks[key] in ("0", blocks[query])
            assert bool(rule[query, key]) == (shared and key <= query)


def test_order_decides_causality_not_position_ids(film, lay_out, sample_with, latent):
    """Audio slots come after visual ones in the sequence, though their ids are smaller."""
    plan = lay_out(latent(num_visual=4, num_audio=2, ospe="slot"), film(), sample_with(1))
    batch = collate([plan])
    rule = allowed(*[look_at(batch.kinds_BL, batch.blocks_BL)] * 2, bottleneck="none", training=True)[0]
    last_visual, first_audio = plan.spans[0].trigger + 4, plan.spans[0].trigger + 5
    assert plan.position_ids[0, first_audio] < plan.position_ids[0, last_visual]
    assert rule[first_audio, last_visual]
    assert not rule[last_visual, first_audio]


@torch.no_grad()
def test_padding_is_never_seen(backbone, film, lay_out, sample_with, latent):
    plan = lay_out(latent(), film(), sample_with(1))
    longer = lay_out(latent(), film(1, 3), sample_with(2))
    batch = collate([plan, longer])
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="published", training=True))
    inputs = embed_batch(backbone, batch).inputs_BLD
    padding = (batch.kinds_BL == Kind.PAD)[..., None]
    assert padding.any()
    assert mask.diagonal(dim1=1, dim2=2).all()  # softmax over nothing is undefined
    clean, noisy = (
        backbone.run(x, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)
        for x in (inputs, torch.where(padding, 100 * torch.ones_like(inputs), inputs))
    )
    assert noisy.isfinite().all()
    assert torch.equal(clean[0, : len(plan)], noisy[0, : len(plan)])


@torch.no_grad()
def test_packed_questions_give_the_logits_of_separate_sequences(backbone, tokenizer, vocabulary, film):
    media = film(5, 3)
    questions = [("Which colour is on screen in second 1?", " red"), ("List the tones.", " low none mid"), ("", " 2")]

    def begin() -> PlanBuilder:
        return PlanBuilder(tokenizer, vocabulary, media).clip_turn()

    def answer(builder: PlanBuilder, question: str, words: str) -> PlanBuilder:
        return builder.question_turn(question).text(words, Kind.TEXT, learn=True).end_turn()

    packed = begin()
    for question, words in questions:
        answer(packed.new_block(), question, words)
    plan = packed.build()
    together = _logits(backbone, plan)
    for block, (question, words) in enumerate(questions, start=1):
        alone = answer(begin(), question, words).build()
        place = plan.blocks == block
        own = alone.kinds[-int(place.sum()) :]
        assert plan.kinds[place].tolist() == own.tolist()
        assert torch.equal(plan.position_ids[:, place], alone.position_ids[:, -len(own) :])
        assert torch.equal(plan.labels[place], alone.labels[-len(own) :])
        torch.testing.assert_close(together[place], _logits(backbone, alone)[-len(own) :], atol=1e-5, rtol=0)


def _logits(backbone, plan: Plan) -> torch.Tensor:
    batch = collate([plan])
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="none", training=True))
    inputs = embed_batch(backbone, batch).inputs_BLD
    return backbone.logits(backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask))[0]
