"""Where generated positions look: how much of their attention falls on the clip and how much on latent slots.

Nothing is asked of the attention kernel. A recorded rollout is replayed with a hook before every attention layer, which
makes queries and keys once more, from the layer's own projections and the stock rotary function.
"""

# B = rows, H = heads, L = positions, G = generated positions of the row that has most, E = width of a head, N = layers,
# S = generated positions of one row.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAttention, apply_rotary_pos_emb, repeat_kv

from omni_model.backbone import Backbone
from omni_model.replay import Track
from omni_model.sequence import Kind
from omni_model.slots import gather, index_range

_SIGNS = (Kind.TEMPLATE, Kind.MARKER, Kind.TRIGGER, Kind.STOP)
"""Keys that stand for nothing seen, heard or said. Many heads rest on them, so a ratio leaves them out."""


@dataclass(frozen=True, kw_only=True)
class Gaze:
    """Where each generated position of one row looks, layer by layer: shares of its attention, mean over heads."""

    kinds_S: torch.Tensor
    """int64 of `Kind`: what the looking position is."""
    media_NS: torch.Tensor
    """On tokens of the clip."""
    latents_NS: torch.Tensor
    """On latent slots, its own among them."""
    signs_NS: torch.Tensor
    """On template, markers, triggers and stops."""

    @property
    def is_latent(self) -> torch.Tensor:
        """bool (S,): the looking position is a latent slot."""
        return (self.kinds_S == Kind.LATENT_VISUAL) | (self.kinds_S == Kind.LATENT_AUDIO)


@contextmanager
def watch(backbone: Backbone, track: Track) -> Iterator[list[torch.Tensor]]:
    """Note attention while the track is run: one tensor (3, B, G) a layer, of shares on media, latents and signs."""
    llm = backbone.modules_by_group()["llm"]
    layers = [module for module in llm.modules() if isinstance(module, Qwen2_5OmniAttention)]
    if not layers:
        raise ValueError("attention is measured on Qwen2.5-Omni's own layers, and this backbone has none of them")
    shares: list[torch.Tensor] = []
    groups_3BL = torch.stack([track.is_media, track.is_latent, _is_sign(track.kinds_BL)])
    queries_BG = _generated(track)

    def note(layer: nn.Module, _: tuple[Any, ...], given: dict[str, Any]) -> None:
        weights_BGL = _attention(layer, queries_BG, given)
        shares.append(torch.einsum("bgl,cbl->cbg", weights_BGL, groups_3BL.float()))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield shares
    finally:
        for hook in hooks:
            hook.remove()


def gazes(track: Track, shares: Sequence[torch.Tensor]) -> list[Gaze]:
    """What was noted, row by row."""
    shares_3NBG = torch.stack(list(shares), 1).cpu()
    kinds_BL, generated_BL = track.kinds_BL.cpu(), track.generated_BL.cpu()
    out = []
    for row in range(len(kinds_BL)):
        kinds_S = kinds_BL[row, generated_BL[row]]
        media, latents, signs = shares_3NBG[:, :, row, : len(kinds_S)]
        out.append(Gaze(kinds_S=kinds_S, media_NS=media, latents_NS=latents, signs_NS=signs))
    return out


def media_ratio(rows: Sequence[Gaze], *, layer: int | None = -1, credit: bool) -> float | None:
    """Share of the clip in all attention that is not on signs, summed over the generated positions of all rows.

    With `credit`, what words look at latents counts as looking at the clip: LatentOmni's own figure (its Figure 1, of
    the last layer), by which a model gains that looks at slots whatever they hold. Without, only the clip counts.
    `layer` None takes the mean over layers. The template's plain words count as signs here. None where nothing was
    generated.
    """
    looked = total = 0.0
    for gaze in rows:
        media_S, latents_S, signs_S = (
            x_NS.mean(0) if layer is None else x_NS[layer] for x_NS in (gaze.media_NS, gaze.latents_NS, gaze.signs_NS)
        )
        looked += float(media_S.sum()) + float(latents_S[~gaze.is_latent].sum()) * credit
        total += float((1.0 - signs_S).sum())
    return looked / total if total else None


def summarise_gaze(gaze: Gaze) -> dict[str, float]:
    """One row as plain figures, means over layers and positions: of words and of latents, on the clip and on latents.

    Figures of positions that the row does not have are left out; so is attention on latents where there is none to see.
    """
    figures = {}
    latents_seen = bool(gaze.is_latent.any())
    for who, those_S in (("words", gaze.kinds_S == Kind.TEXT), ("latents", gaze.is_latent)):
        if bool(those_S.any()):
            figures[f"{who}_on_media"] = float(gaze.media_NS[:, those_S].mean())
            if latents_seen:
                figures[f"{who}_on_latents"] = float(gaze.latents_NS[:, those_S].mean())
    for name, credit in (("ratio_paper", True), ("ratio_direct", False)):
        ratio = media_ratio([gaze], credit=credit)
        if ratio is not None:
            figures[name] = ratio
    return figures


def _is_sign(kinds_BL: torch.Tensor) -> torch.Tensor:
    return torch.isin(kinds_BL, torch.tensor([int(kind) for kind in _SIGNS], device=kinds_BL.device))


def _generated(track: Track) -> torch.Tensor:
    """Index of every generated position, -1 where a row has fewer: (B, G)."""
    ends_B = (track.kinds_BL != Kind.PAD).sum(1)
    return index_range(ends_B - track.generated_BL.sum(1), ends_B)


def _attention(layer: nn.Module, queries_BG: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """Mean over heads of the layer's attention weights (B, G, L), in single precision."""
    hidden_BLD, (cos, sin) = given["hidden_states"], given["position_embeddings"]
    rows, length, _ = hidden_BLD.shape
    shape = (rows, length, -1, layer.head_dim)
    q_BHLE = layer.q_proj(hidden_BLD).view(shape).transpose(1, 2)  # type: ignore[operator]
    k_BHLE = layer.k_proj(hidden_BLD).view(shape).transpose(1, 2)  # type: ignore[operator]
    q_BHLE, k_BHLE = apply_rotary_pos_emb(q_BHLE, k_BHLE, cos, sin)
    k_BHLE = repeat_kv(k_BHLE, layer.num_key_value_groups)  # type: ignore[arg-type]
    index_BG = queries_BG.clamp(min=0)
    heads, width = q_BHLE.shape[1], q_BHLE.shape[3]
    q_BHGE = q_BHLE.gather(2, index_BG[:, None, :, None].expand(-1, heads, -1, width))
    mask_BGL = gather(given["attention_mask"][:, 0], index_BG)
    scores = (q_BHGE @ k_BHLE.transpose(2, 3)).float() * layer.scaling  # type: ignore[operator]
    return torch.softmax(scores + mask_BGL[:, None].float(), -1).mean(1)
