"""Adapter over Hugging Face's Qwen2.5-Omni Thinker: the stock classes, wrapped, never patched."""

# B = rows, Q = new positions, K = cached plus new positions, D = model width.

from __future__ import annotations

import torch
from torch import nn
from transformers import Cache, Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.backbone import Encoded
from omni_model.batch import MediaBatch


class QwenOmniBackbone(nn.Module):
    """The four operations over a Thinker."""

    def __init__(self, thinker: Qwen2_5OmniThinkerForConditionalGeneration) -> None:
        super().__init__()
        self.thinker = thinker
        self.width: int = thinker.config.get_text_config().hidden_size

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
        mask = mask_BQK[:, None]
        if text.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=inputs_BQD.dtype).masked_fill(~mask, torch.finfo(inputs_BQD.dtype).min)
        # A dict is taken as it is: the stock model then builds no mask of its own.
        kinds = set(text.config.layer_types or ())
        return text(
            inputs_embeds=inputs_BQD,
            position_ids=position_ids_3BQ,
            attention_mask=dict.fromkeys(kinds, mask),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.thinker.lm_head(hidden)

    def modules_by_group(self) -> dict[str, nn.Module]:
        model = self.thinker.model
        llm = nn.ModuleList([model.language_model, self.thinker.lm_head])
        return {"vision": model.visual, "audio": model.audio_tower, "llm": llm}
