"""What a training step of a model takes: weights, activations, matrix work. Told from its config; no weight is read.

Weights are counted on the stock class, built without memory. Activations are estimated from what the layers of Qwen2
keep for the backward pass; `tests/model/test_sizing.py` holds the estimate against bytes really kept.
"""

# L = positions of a row, A = width of all attention heads together, V = vocabulary.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from omni_model.folder import TINY_BASE
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.processing import MERGE, PATCH_PX, TEMPORAL_PATCH
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.task import choose_weights, read_settings
from omni_model.task_config import TaskConfig

_VISION = {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32, "intermediate_size": 3420, "num_heads": 16}
_BUILT_IN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-Omni-7B": {
        "text_config": {"tie_word_embeddings": False},  # the other sizes are the class's own defaults
        "vision_config": _VISION,
    },
    "Qwen/Qwen2.5-Omni-3B": {
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "max_window_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
        "vision_config": {**_VISION, "out_hidden_size": 2048},
        "audio_config": {"output_dim": 2048},
    },
}
"""Models whose sizes are known without a network."""

AUDIO_TOKENS_PER_SECOND = 25
_VALUES_PER_VISUAL = MERGE**2 * TEMPORAL_PATCH * PATCH_PX**2 * 3
_VALUES_PER_AUDIO = 4 * 128
"""Mel frames that become one token, and the bands of each."""


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """One sample, as far as it matters for size."""

    length: int
    """Positions of its sequence."""
    text_tokens: int
    """Of them, learned words; the rest is clip and prompt."""
    num_phases: int
    """Latent phases."""
    visual_share: float
    """Share of the positions that are visual tokens."""
    audio_share: float

    @property
    def visual_tokens(self) -> float:
        return self.length * self.visual_share

    @property
    def audio_tokens(self) -> float:
        return self.length * self.audio_share


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What one forward and backward pass of one worker takes."""

    num_weights: int
    num_learning: int
    num_exported: int
    """Weights of the exported model, the method's own among them; adapters are added to the weights they belong to."""
    recomputes: bool
    """Whether activations are recomputed in the backward pass."""
    input_bytes: float
    """Of a collated batch: pixels and mel frames in float32."""
    largest_layer: int
    """Weights of the part that is gathered at once when weights are divided (ZeRO-3)."""
    activation_bytes: float
    """Kept for the backward pass, without recomputing."""
    recomputed_bytes: float
    """Kept when layers are run again: what enters each, and one layer's activations at its turn."""
    rollout_bytes: float
    """Keys and values of the latent rollout beyond those of the sequence itself."""
    flops: float
    """Floating-point operations of forward and backward, without recomputing."""
    recomputing_flops: float
    """What recomputing adds."""
    passes_in_a_row: int
    """Small passes that wait for each other: one a latent slot, or one a sweep."""
    llm_weights: int
    """What each of them has to read."""


def longest_clip(settings: TaskConfig | Mapping[str, Any], *, text_tokens: int, num_phases: int) -> RowShape:
    """A sample whose clip has as many frames, as large, as the task's config allows, at its full frame rate."""
    config = read_settings(settings)
    method = make_method(config.method, config.options)
    grids = -(-config.fps_max_frames // TEMPORAL_PATCH)
    visual = grids * (config.video_max_pixels // (PATCH_PX * MERGE) ** 2)
    seconds = config.fps_max_frames / config.fps
    audio = round(seconds * AUDIO_TOKENS_PER_SECOND) if config.use_audio_in_video else 0
    slots = num_phases * (method.num_visual + method.num_audio)
    length = visual + audio + 2 * text_tokens + slots  # prompt and question count as many as what is learned
    return RowShape(
        length=length,
        text_tokens=text_tokens,
        num_phases=num_phases if slots else 0,
        visual_share=visual / length,
        audio_share=audio / length,
    )


def size_step(
    settings: TaskConfig | Mapping[str, Any], row: RowShape, *, batch_size: int, value_bytes: int
) -> StepSize:
    """Sizes of one pass over `batch_size` rows; `value_bytes` is 2 for bfloat16 and 4 for float32.

    Raises `ValueError` for a model whose sizes cannot be told without a network.
    """
    config = read_settings(settings)
    thinker_config = read_thinker_config(config.model_name_or_path)
    with torch.device("meta"):
        backbone = QwenOmniBackbone(Qwen2_5OmniThinkerForConditionalGeneration(thinker_config))
        learner = Learner(backbone, make_method(config.method, config.options))
        exported = _count(learner)
        choose_weights(learner, config, (0, 1, 2))
    parts = backbone.modules_by_group()
    llm = _Stack.of_llm(thinker_config, parts["llm"])
    towers = {
        "audio": _Stack.of_audio(thinker_config, parts["audio"]),
        "vision": _Stack.of_vision(thinker_config, parts["vision"]),
    }
    # Patches stand for visual tokens before merging, and two audio states for one token.
    lengths = {"audio": 2 * row.audio_tokens, "vision": MERGE**2 * row.visual_tokens}
    learning = {name: (towers[name], lengths[name]) for name in towers if towers[name].learns}
    logits = row.text_tokens * thinker_config.get_text_config().vocab_size
    rollout, passes = _rollout(learner, llm, row, value_bytes, recompute=config.gradient_checkpointing)
    stacks = [(llm, float(row.length)), *learning.values()]
    mask = value_bytes * row.length**2
    outside = logits * (value_bytes + 8) + mask
    head = nn.ModuleList([backbone.thinker.lm_head])
    work_llm = llm.flops(row.length, full_attention=True) + 2.0 * _count(head) * row.text_tokens
    work = work_llm * (3 if llm.weights_learn else 2)
    for name, tower in towers.items():
        work += tower.flops(lengths[name], full_attention=False) * (3 if tower.learns else 1)
    return StepSize(
        num_weights=_count(learner),
        num_learning=sum(p.numel() for p in learner.parameters() if p.requires_grad),
        num_exported=exported,
        recomputes=config.gradient_checkpointing,
        input_bytes=batch_size * (row.visual_tokens * _VALUES_PER_VISUAL + row.audio_tokens * _VALUES_PER_AUDIO) * 4.0,
        largest_layer=max(_count(head), llm.weights // llm.layers),
        activation_bytes=batch_size * (outside + sum(s.kept(value_bytes) * s.layers * n for s, n in stacks)),
        recomputed_bytes=batch_size
        * (
            outside
            + sum(value_bytes * s.width * s.layers * n for s, n in stacks)
            + max(s.kept(value_bytes) * n for s, n in stacks)
        ),
        rollout_bytes=batch_size * rollout,
        flops=batch_size * work,
        recomputing_flops=batch_size
        * (work_llm + sum(tower.flops(n, full_attention=False) for tower, n in learning.values())),
        passes_in_a_row=passes,
        llm_weights=llm.weights,
    )


def read_thinker_config(model_name_or_path: str) -> Qwen2_5OmniThinkerConfig:
    """The config of a Thinker by folder (also of the full Omni class), `tiny`, or one of the built-in hub names."""
    if model_name_or_path in _BUILT_IN:
        return Qwen2_5OmniThinkerConfig(**_BUILT_IN[model_name_or_path])
    folder = TINY_BASE if model_name_or_path == "tiny" else Path(model_name_or_path)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"the sizes of {model_name_or_path} are not known: give model_name_or_path a folder with a config.json, "
            f"tiny, or one of {', '.join(_BUILT_IN)}"
        )
    return Qwen2_5OmniThinkerConfig.from_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """Equal transformer layers, by what a position leaves behind in each."""

    weights: int
    layers: int
    width: int
    attention: int
    key_value: int
    """Width of the keys as they are cached."""
    inner: int
    gated: bool
    """SwiGLU with RMS norms, or GELU with layer norms."""
    learns: bool
    """Whether anything in it does, so that it has a backward pass."""
    weights_learn: bool
    """Whether that is all its weights, or adapters alone."""

    @classmethod
    def of_llm(cls, config: Qwen2_5OmniThinkerConfig, part: nn.Module) -> _Stack:
        text = config.get_text_config()
        head = text.hidden_size // text.num_attention_heads
        blocks = nn.ModuleList(m for n, m in part.named_modules() if n.endswith("layers"))
        return cls(
            weights=_count(blocks),
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            attention=text.num_attention_heads * head,
            key_value=text.num_key_value_heads * head,
            inner=text.intermediate_size,
            gated=True,
            learns=True,  # gradient flows through it to the latents whatever is frozen
            weights_learn=_share_learning(blocks) > 0.5,
        )

    @classmethod
    def of_vision(cls, config: Qwen2_5OmniThinkerConfig, part: nn.Module) -> _Stack:
        vision: Any = config.vision_config
        inner = vision.intermediate_size
        return cls._of_tower(part, layers=vision.depth, width=vision.hidden_size, inner=inner, gated=True)

    @classmethod
    def of_audio(cls, config: Qwen2_5OmniThinkerConfig, part: nn.Module) -> _Stack:
        audio: Any = config.audio_config
        inner = audio.encoder_ffn_dim
        return cls._of_tower(part, layers=audio.encoder_layers, width=audio.d_model, inner=inner, gated=False)

    @classmethod
    def _of_tower(cls, part: nn.Module, *, layers: int, width: int, inner: int, gated: bool) -> _Stack:
        return cls(
            weights=_count(part),
            layers=layers,
            width=width,
            attention=width,
            key_value=width,
            inner=inner,
            gated=gated,
            learns=_share_learning(part) > 0,
            weights_learn=True,
        )

    def kept(self, value_bytes: int) -> float:
        """Bytes that one position leaves in one layer for its backward pass."""
        # Each of two norms keeps its input in float32 and two values after it; attention keeps queries, keys and
        # values of all heads, its output twice; the gated MLP keeps four inner values, the other two.
        norms = 2 * self.width * (4 + 2 * value_bytes)
        attention = 5 * self.attention * value_bytes
        inner = (4 if self.gated else 2) * self.inner * value_bytes
        return norms + attention + inner

    def flops(self, length: float, *, full_attention: bool) -> float:
        """Operations of a forward pass over so many positions. Towers attend within windows: that part is left out."""
        attention = 4.0 * length**2 * self.attention * self.layers if full_attention else 0.0
        return 2.0 * self.weights * length + attention


def _rollout(learner: Learner, llm: _Stack, row: RowShape, value_bytes: int, *, recompute: bool) -> tuple[float, int]:
    """Bytes kept beyond one parallel pass because own latents are made, and the passes that wait for each other."""
    method = learner.method
    slots, unroll = row.num_phases * (method.num_visual + method.num_audio), method.unroll
    if not slots or unroll.engine == "teacher_parallel" or learner.heads.feedback.is_constant:
        return 0.0, 0
    passes = row.num_phases * unroll.jacobi_sweeps if unroll.engine == "jacobi" else slots
    cache = 2.0 * llm.key_value * llm.layers * row.length * value_bytes
    if unroll.gradient == "detached":
        return cache, passes
    # Every phase joins its keys and values to a copy of the cache; attention spreads them over all heads.
    spread = 0.0 if recompute else 2.0 * llm.attention * llm.layers * row.length * value_bytes
    kept = row.num_phases * (cache + spread)
    if unroll.engine == "two_pass":
        kept += llm.layers * row.length * (value_bytes * llm.width if recompute else llm.kept(value_bytes))
    return kept, passes


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _share_learning(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters() if p.requires_grad) / max(1, _count(module))
