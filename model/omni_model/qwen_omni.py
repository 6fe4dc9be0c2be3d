"""Adapter over Hugging Face's Qwen2.5-Omni Thinker: the stock classes, wrapped, never patched."""

# B = rows, Q = new positions, K = cached plus new positions, D = model width.

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.batch import Encoded, MediaBatch
from omni_model.keyvalues import Cache, Pair
from omni_model.tower_attention import TOWER_ATTENTION


class QwenOmniBackbone(nn.Module):
    """The four operations over a Thinker."""

    def __init__(self, thinker: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
        super().__init__()
        self.thinker = thinker
        for tower in (thinker.model.visual, thinker.model.audio_tower):
            tower.config._attn_implementation = TOWER_ATTENTION
        self.width: int = thinker.config.get_text_config().hidden_size
        self.recompute = False
        """Keep only what enters each layer of the language model, and run the layer again in the backward pass."""

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.thinker.get_input_embeddings()(input_ids)

    def encode(self, media: MediaBatch) -> Encoded:
        model = self.thinker.model
        visual = model.visual(media.patches.to(model.visual.dtype), grid_thw=media.grid_thw).pooler_output
        if len(media.mel_lengths) == 0:
            return Encoded(visual_ND=visual, audio_ND=visual.new_zeros(0, self.width))
        audio = model.audio_tower(
            media.mel.to(model.audio_tower.dtype), feature_lens=media.mel_lengths
        ).last_hidden_state
        return Encoded(visual_ND=visual, audio_ND=audio)

    def run(
        self,
        inputs_BQD: torch.Tensor,
        *,
        position_ids_3BQ: torch.Tensor,
        mask_BQK: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        text = self.thinker.model.language_model
        mask = _additive(mask_BQK[:, None], inputs_BQD.dtype)
        rotary = text.rotary_emb(inputs_BQD, position_ids_3BQ)
        hidden = inputs_BQD
        # Layer by layer, because the stock loop drops the cache as soon as its layers recompute activations.
        for index, layer in enumerate(text.layers):
            past = None if cache is None else cache.past(index)
            run_layer = partial(_run_layer, layer, mask=mask, rotary=rotary, past=past, cache=cache)
            if self.recompute and torch.is_grad_enabled():
                hidden, whole = checkpoint(run_layer, hidden, use_reentrant=False)  # type: ignore[misc]
            else:
                hidden, whole = run_layer(hidden)
            if cache is not None:
                cache.put(index, whole)
        return text.norm(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.thinker.lm_head(hidden)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, in the towers by the stock switch and in the language model here.

        The stock switch of the language model stays off: its layers would silently forget the cache.
        """
        self.recompute = True
        for tower in (self.thinker.model.visual, self.thinker.model.audio_tower):
            tower.gradient_checkpointing_enable({"use_reentrant": False})

    def modules_by_group(self) -> dict[str, nn.Module]:
        model = self.thinker.model
        llm = nn.ModuleList([model.language_model, self.thinker.lm_head])
        return {"vision": model.visual, "audio": model.audio_tower, "llm": llm}


class _OneLayer:
    """The cache of one layer in one pass, in the stock model's terms."""

    def __init__(self, past: Pair | None, cache: Cache | None) -> None:
        self._past, self._cache = past, cache
        self.whole: Pair | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: object) -> Pair:
        self.whole = (keys, values) if self._cache is None else self._cache.join(self._past, (keys, values))
        return self.whole


def _run_layer(
    layer: nn.Module,
    hidden_BQD: torch.Tensor,
    *,
    mask: torch.Tensor,
    rotary: Pair,
    past: Pair | None,
    cache: Cache | None,
) -> tuple[torch.Tensor, Pair]:
    """A stock layer over a past that is given, not remembered: running it twice gives the same."""
    keyvalues = _OneLayer(past, cache)
    hidden = layer(hidden_BQD, attention_mask=mask, position_embeddings=rotary, past_key_values=keyvalues)
    assert keyvalues.whole is not None
    return hidden, keyvalues.whole


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where attention may look and the lowest number elsewhere: made once here instead of once in every layer."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
