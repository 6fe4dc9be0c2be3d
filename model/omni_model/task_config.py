"""The settings of a training task: which model learns which method. Reading them needs neither torch nor a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from omni_model.method_options import (
    METHOD_OPTIONS,
    Count,
    MethodOptions,
    Natural,
    NotNegative,
    Positive,
    TextReduction,
)
from omni_model.prompt import PromptName

Part = Literal["vision", "audio", "llm", "heads"]
"""A part of the model: its towers, its language model, and the weights of the method's own."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which model learns which method, and which of its parts."""

    model_name_or_path: str = "tiny"
    """Folder, hub name, or `tiny` for the toy base that ships with the package."""
    method: str = "latent_omni"
    """latent_omni, pause, markers, text_cot or sft."""
    options: MethodOptions | Mapping[str, Any] = field(
        default_factory=dict, metadata={"chosen_by": "method", "kinds": METHOD_OPTIONS}
    )
    """Options of the method."""
    text_loss_reduction: TextReduction = "token_mean"
    """Of the text loss over an optimizer step: `token_mean`, every learned token weighs the same; `sample_mean`, every
    sample does, whatever the length of its answer."""
    markers_like: str | None = None
    """Text of the token that lends its row to trigger and stop before training, such as ":" (`start_markers_like`)."""
    freeze: tuple[Part, ...] = ("vision",)
    """Parts that do not learn: vision, audio, llm, heads (the method's own weights)."""
    lr_scale: Mapping[Part, NotNegative] = field(default_factory=dict)
    """What multiplies learning_rate in a part, by the names of `freeze`: {heads: 10} lets new weights learn faster."""
    lora_rank: Natural = 0
    """Above 0: adapters of this rank learn in the language model, in place of all pretrained weights."""
    lora_alpha: Positive = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Of what the adapters read."""
    lora_target: tuple[str, ...] = ("all",)
    """Layers with adapters: all (every linear layer of the language model), or names such as q_proj, v_proj."""
    max_length: Count = 32768
    """Samples with more positions than this are refused, never cut."""
    fps: Positive = 2.0
    fps_max_frames: Count = 256
    video_min_pixels: Count = 56 * 56
    video_max_pixels: Count = 56 * 56
    use_audio_in_video: bool = True
    prompt: PromptName = "open"
    """How questions are put and answers taught: open (the question alone, the answer in words) or lettered (the options
    with their letters below the question, the letter as answer). It goes into the exported model."""
    system_prompt: str = ""
    """The system turn of every sequence; empty for none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them; the losses stay the same."""

    def __post_init__(self) -> None:
        if self.method not in METHOD_OPTIONS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(sorted(METHOD_OPTIONS))}")
        if self.video_min_pixels > self.video_max_pixels:
            raise ValueError(
                f"video_min_pixels={self.video_min_pixels} is above video_max_pixels={self.video_max_pixels}"
            )
        if self.lora_rank and "llm" in self.freeze:
            raise ValueError("freeze names llm, where the adapters of lora_rank learn: take one of the two away")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What an evaluation of this task reports."""
        return ("loss", "text", *METHOD_OPTIONS[self.method].loss_names)
