"""The toy size is the real thing, small."""

from __future__ import annotations

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import CHAT_TOKENS, LATENT_TOKENS, MEDIA_TOKENS, read_vocabulary
from omni_platform.media.film import corpus
from omni_platform.media.scene import COLOURS, TONES


def test_the_default_toy_is_the_stock_class_with_one_to_five_million_weights(vocabulary):
    thinker = build_tiny(TinyConfig(), vocabulary)
    assert type(thinker) is Qwen2_5OmniThinkerForConditionalGeneration
    assert 1_000_000 < sum(p.numel() for p in thinker.parameters()) < 5_000_000
    # The rotary pairs are split among time, height and width as in the 7B model: 2 : 3 : 3.
    head_dim = TinyConfig().hidden_size // TinyConfig().num_heads
    sections = thinker.config.text_config.rope_parameters["mrope_section"]
    assert sum(sections) == head_dim // 2
    assert [8 * s for s in sections] == [head_dim, 3 * head_dim // 2, 3 * head_dim // 2]


def test_weights_are_a_function_of_the_seed(vocabulary):
    one, same, other = (build_tiny(TinyConfig(), vocabulary, seed=s).lm_head.weight for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_words_of_the_film_are_single_tokens(tokenizer):
    for word in (*COLOURS, *TONES, "none"):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    for text in ("Answer: red", "Zürich, 12 °C?\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_are_one_id_each_and_known_by_the_real_names(tokenizer, vocabulary):
    names = (*CHAT_TOKENS, *MEDIA_TOKENS, *LATENT_TOKENS)
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    assert ids == [[i] for i in vars(vocabulary).values()]
    assert len({i for (i,) in ids}) == len(names)
    assert len(tokenizer) <= TinyConfig().vocab_size


def test_reading_the_vocabulary_twice_adds_nothing(tokenizer, vocabulary):
    before = len(tokenizer)
    assert read_vocabulary(tokenizer) == vocabulary
    assert len(tokenizer) == before


def test_the_tokenizer_is_a_function_of_its_corpus(tokenizer):
    assert train_tokenizer(corpus()).get_vocab() == tokenizer.get_vocab()
