"""Low-rank adapters in the language model (LoRA, by PEFT), and the few rows of the tables that new tokens need.

Pretrained weights stay as they are. What learns is small: two thin matrices beside every adapted layer, one row a new
token on the input and on the output side, and the method's own heads. `merged_state` adds everything up for export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.folder import Whole, already_whole

_ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Which layers get adapters, and how wide they are."""

    rank: int
    alpha: float
    """What an adapter adds is scaled by alpha / rank."""
    dropout: float
    target: tuple[str, ...]
    """`all` for every linear layer of the language model's blocks, or their names, such as q_proj."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA needs lora_rank of at least 1, lora_alpha above 0 and lora_dropout from 0 to below 1, got "
                f"{self.rank}, {self.alpha:g} and {self.dropout:g}"
            )


def add_adapters(
    thinker: Qwen2_5OmniThinkerForConditionalGeneration,
    options: LoraOptions,
    *,
    new_ids: Sequence[int],
    whole: Whole = already_whole,
) -> None:
    """Put adapters into a Thinker in place; afterwards they and the rows of `new_ids` are all that learns.

    Adapters begin by adding nothing. Raises `ValueError` for a target that the language model does not have.
    """
    config = LoraConfig(
        r=options.rank,
        lora_alpha=cast(int, options.alpha),  # PEFT divides by the rank, and takes fractions too
        lora_dropout=options.dropout,
        target_modules=_target_names(thinker, options.target),
    )
    inject_adapter_in_model(config, thinker, adapter_name=_ADAPTER)
    if new_ids:
        _add_rows(thinker, list(new_ids), whole)


@torch.no_grad()
def merged_state(thinker: nn.Module) -> dict[str, torch.Tensor]:
    """The weights by their stock names, with adapters and rows added in; the module itself is not changed.

    Sums are made in float32 and rounded to the weight's own type, on its device, and what changed is a copy.
    """
    parts = dict(thinker.named_modules())
    merged = {}
    for name, value in thinker.state_dict().items():
        if ".lora_" in name or name.endswith(".rows"):
            continue
        owner_name, is_base, leaf = name.rpartition(".base_layer.")
        if is_base and leaf == "weight":
            owner = parts[owner_name]
            value = _with_rows(value, owner) if isinstance(owner, (_Embedding, _Head)) else _with_delta(value, owner)
        merged[f"{owner_name}.{leaf}" if is_base else name] = value
    return merged


def save_adapter(thinker: nn.Module, folder: Path, *, base: str) -> None:
    """Write adapters and rows in PEFT's format: `PeftModel.from_pretrained(base model, folder)` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    config: LoraConfig = cast(Any, thinker).peft_config[_ADAPTER]
    rows = {name: m for name, m in thinker.named_modules() if isinstance(m, (_Embedding, _Head))}
    tokens = {name.rpartition(".")[2]: cast(torch.Tensor, m.ids).tolist() for name, m in rows.items()}
    replace(
        config, base_model_name_or_path=base, inference_mode=True, trainable_token_indices=tokens or None
    ).save_pretrained(str(folder))
    weights = {n.replace(f".{_ADAPTER}.", "."): v for n, v in thinker.state_dict().items() if ".lora_" in n}
    weights |= {f"{name}.token_adapter.trainable_tokens_delta": m.rows.detach() for name, m in rows.items()}
    save_file({f"base_model.model.{n}": v.clone() for n, v in weights.items()}, folder / "adapter_model.safetensors")


def _target_names(thinker: Qwen2_5OmniThinkerForConditionalGeneration, target: tuple[str, ...]) -> list[str]:
    blocks = thinker.model.language_model.layers
    linear = [name for name, part in blocks.named_modules() if isinstance(part, nn.Linear)]
    known = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    wanted = tuple(known) if target == ("all",) else target
    if not wanted or set(wanted) - set(known):
        raise ValueError(f"lora_target {list(target)} is not understood; give [all], or some of {', '.join(known)}")
    return [f"model.language_model.layers.{name}" for name in linear if name.rpartition(".")[2] in wanted]


def _add_rows(thinker: Qwen2_5OmniThinkerForConditionalGeneration, ids: list[int], whole: Whole) -> None:
    embedding, head = cast(nn.Embedding, thinker.get_input_embeddings()), thinker.lm_head
    rows = _copy_rows(embedding.weight, ids, whole)
    # Where both tables are one, so are their rows.
    head_rows = rows if head.weight is embedding.weight else _copy_rows(head.weight, ids, whole)
    thinker.set_input_embeddings(_Embedding(embedding, rows, ids))
    thinker.set_output_embeddings(_Head(head, head_rows, ids))


def _copy_rows(table: torch.Tensor, ids: list[int], whole: Whole) -> nn.Parameter:
    with whole([table]):
        return nn.Parameter(table.detach()[ids].clone())


class _Embedding(nn.Module):
    """A frozen table of which some rows learn. The table is read by its own forward, so it may be divided (ZeRO-3)."""

    def __init__(self, base: nn.Embedding, rows: nn.Parameter, ids: list[int]) -> None:
        super().__init__()
        self.base_layer, self.rows = base, rows
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        vectors = self.base_layer(input_ids)
        for row, token in zip(self.rows, cast(torch.Tensor, self.ids), strict=True):
            vectors = torch.where((input_ids == token)[..., None], row.to(vectors.dtype), vectors)
        return vectors


class _Head(nn.Module):
    """A frozen output layer of which some rows learn."""

    def __init__(self, base: nn.Linear, rows: nn.Parameter, ids: list[int]) -> None:
        super().__init__()
        self.base_layer, self.rows = base, rows
        self.register_buffer("ids", torch.tensor(ids), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.base_layer(hidden)
        return logits.index_copy(-1, cast(torch.Tensor, self.ids), F.linear(hidden, self.rows.to(hidden.dtype)))


def _with_rows(table: torch.Tensor, owner: _Embedding | _Head) -> torch.Tensor:
    return table.index_copy(0, cast(torch.Tensor, owner.ids), owner.rows.to(table.dtype))


def _with_delta(weight: torch.Tensor, owner: nn.Module) -> torch.Tensor:
    delta = cast(Any, owner).get_delta_weight(_ADAPTER)
    return (weight.float() + delta.float()).to(weight.dtype)
