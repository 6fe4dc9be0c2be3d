"""The tokens with a meaning of their own, by name, in the toy tokenizer and in the real one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MEDIA_TOKENS = (
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)
LATENT_TOKENS = ("<Unified_Latent_pad>", "<Unified_Latent>", "</Unified_Latent>")
"""Placeholder of a slot, trigger, stop: LatentOmni's names, in the authors' order of adding them."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Ids of the special tokens."""

    pad: int
    chat_begin: int
    chat_end: int
    audio: int
    audio_begin: int
    audio_end: int
    vision_begin: int
    vision_end: int
    image: int
    video: int
    latent: int
    trigger: int
    stop: int


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Look the special tokens up, adding LatentOmni's three where the tokenizer lacks them.

    The real tokenizer ends below the embedding's row count, so the new ids fall into unused rows (`init_new_rows`
    fills them). Raises `ValueError` for a tokenizer without Qwen2.5-Omni's media tokens.
    """
    tokenizer.add_tokens(list(LATENT_TOKENS), special_tokens=True)
    known = tokenizer.get_vocab()
    missing = [t for t in (*CHAT_TOKENS, *MEDIA_TOKENS) if t not in known]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {missing}: it is not a Qwen2.5-Omni tokenizer. Give model_name_or_path a folder "
            "or hub name whose tokenizer belongs to Qwen2.5-Omni, or to the toy model."
        )
    ids = [known[t] for t in (*CHAT_TOKENS, *MEDIA_TOKENS, *LATENT_TOKENS)]
    return Vocabulary(
        pad=ids[0],
        chat_begin=ids[1],
        chat_end=ids[2],
        audio=ids[3],
        audio_begin=ids[4],
        audio_end=ids[5],
        vision_begin=ids[6],
        vision_end=ids[7],
        image=ids[8],
        video=ids[9],
        latent=ids[10],
        trigger=ids[11],
        stop=ids[12],
    )


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of plain words, in which no token with a meaning of its own is read.

    Questions, options, answers and system prompts come from requests and manifests: "<|im_end|>" in one of them is ten
    characters. Any other text has the ids that the tokenizer itself gives it. Half a surrogate pair counts as "?".
    """
    backend = cast(Any, tokenizer).backend_tokenizer
    # The same pipeline without the added tokens; `split_special_tokens` splits only those that are marked special, and
    # sets that on the tokenizer for everybody.
    plain = Tokenizer(backend.model)
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    return plain.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False).ids
