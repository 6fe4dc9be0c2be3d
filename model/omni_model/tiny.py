"""The toy size: the very classes of Qwen2.5-Omni's Thinker with a million weights, and a tokenizer trained here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from omni_model.vocabulary import CHAT_TOKENS, LATENT_TOKENS, MEDIA_TOKENS, Vocabulary


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """Sizes of the toy model; the defaults give about 1.3 million weights."""

    hidden_size: int = 96
    num_layers: int = 3
    num_heads: int = 3
    num_kv_heads: int = 1
    intermediate_size: int = 288
    vision_size: int = 128
    """The vision tower may be wide: it sees few patches a clip, so it costs little time."""
    audio_size: int = 64
    tower_layers: int = 2
    vocab_size: int = 512
    initializer_range: float = 0.05


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: frequent words of the corpus become one token, and any text can be encoded.

    It knows Qwen2.5-Omni's chat and media tokens and LatentOmni's three by the same names as the real one.
    """
    special = [*CHAT_TOKENS, *MEDIA_TOKENS, *LATENT_TOKENS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Words occur after a space and at the start of an answer; both forms should be single tokens, and so should
    # the role names of the chat template, which stand in every sequence.
    lines = [form for line in corpus for form in (line, f" {line}")]
    tokenizer.train_from_iterator([*lines, *["user", "assistant", "system"] * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
    )


def build_tiny(
    config: TinyConfig, vocabulary: Vocabulary, *, seed: int = 0
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A randomly initialised toy Thinker."""
    head_dim = config.hidden_size // config.num_heads
    sixth = head_dim // 2 // 8
    thinker = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": config.audio_size,
            "encoder_layers": config.tower_layers,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * config.audio_size,
            "output_dim": config.hidden_size,
            "initializer_range": config.initializer_range,
        },
        vision_config={
            "depth": config.tower_layers,
            "hidden_size": config.vision_size,
            "intermediate_size": 2 * config.vision_size,
            "num_heads": 2,
            "out_hidden_size": config.hidden_size,
            "fullatt_block_indexes": list(range(config.tower_layers)),
            "initializer_range": config.initializer_range,
        },
        text_config={
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "initializer_range": config.initializer_range,
            # The same 2:3:3 split of rotary pairs among time, height and width as the 7B model.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [2 * sixth, 3 * sixth, 3 * sixth],
            },
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
        audio_token_index=vocabulary.audio,
        video_token_index=vocabulary.video,
        image_token_index=vocabulary.image,
        audio_start_token_id=vocabulary.audio_begin,
        audio_end_token_id=vocabulary.audio_end,
        initializer_range=config.initializer_range,
    )
    # Read by the stock position computation, though not fields of its config class.
    setattr(thinker, "vision_start_token_id", vocabulary.vision_begin)  # noqa: B010
    setattr(thinker, "vision_end_token_id", vocabulary.vision_end)  # noqa: B010
    torch.manual_seed(seed)
    return Qwen2_5OmniThinkerForConditionalGeneration(thinker)
