"""What the training floor is given: the module, how rows become batches, which weights learn, and the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from omni_model.batch import Batch, collate
from omni_model.folder import (
    Preparation,
    Whole,
    already_whole,
    load_backbone,
    save_folder,
    start_markers_like,
)
from omni_model.learner import Learner
from omni_model.lora import LoraOptions, add_adapters, merged_state, save_adapter
from omni_model.methods import make_method
from omni_model.options import read_options
from omni_model.prompt import PromptName, prompt_template
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.rows import PreparedRow
from omni_model.sequence import Plan, PlanBuilder, prepare_media


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which model learns which method, and which of its parts."""

    model_name_or_path: str = "tiny"
    """Folder, hub name, or `tiny` for the toy base that ships with the package."""
    method: str = "latent_omni"
    """latent_omni, pause, markers, text_cot or sft."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""
    markers_like: str | None = None
    """Text of the token that lends its row to trigger and stop before training, such as ":" (`start_markers_like`)."""
    freeze: tuple[str, ...] = ("vision",)
    """Parts that do not learn: vision, audio, llm, heads (the method's own weights)."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """What multiplies learning_rate in a part, by the names of `freeze`: {heads: 10} lets new weights learn faster."""
    lora_rank: int = 0
    """Above 0: adapters of this rank learn in the language model, in place of all pretrained weights."""
    lora_alpha: float = 16.0
    """Adapters are scaled by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Of what the adapters read."""
    lora_target: tuple[str, ...] = ("all",)
    """Layers with adapters: all (every linear layer of the language model), or names such as q_proj, v_proj."""
    max_length: int = 32768
    """Samples with more positions than this are refused, never cut."""
    fps: float = 2.0
    fps_max_frames: int = 256
    video_min_pixels: int = 56 * 56
    video_max_pixels: int = 56 * 56
    use_audio_in_video: bool = True
    prompt: PromptName = "open"
    """How questions are put and answers taught: open (the question alone, the answer in words) or lettered (the options
    with their letters below the question, the letter as answer). It goes into the exported model."""
    system_prompt: str = ""
    """The system turn of every sequence; empty for none."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them; the losses stay the same."""


class ReasoningTask:
    """One model learning one method."""

    def __init__(self, config: TaskConfig, *, lockstep: bool = False, whole: Whole = already_whole) -> None:
        """`lockstep` and `whole` are for weights divided among workers (see `build_task`)."""
        self.config = config
        self._lockstep = lockstep
        self._method = make_method(config.method, config.options)
        self._loaded = load_backbone(config.model_name_or_path, whole=whole)
        if config.markers_like is not None:
            start_markers_like(self._loaded, config.markers_like, whole=whole)
        self._preparation = _preparation(config)
        self._learner = Learner(self._loaded.backbone, self._method)
        self.module: nn.Module = self._learner
        vocabulary = self._loaded.vocabulary
        choose_weights(self._learner, config, (vocabulary.latent, vocabulary.trigger, vocabulary.stop), whole=whole)
        if config.gradient_checkpointing:
            self._loaded.backbone.checkpoint_activations()

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of every raw term in the loss."""
        return {"text": 1.0, **self._method.weights}

    def collate(self, rows: Sequence[PreparedRow]) -> Batch:
        """Lay rows out and pad them to one batch. Raises `ValueError` naming a sample that is too long."""
        plans = [self.plan(row) for row in rows]
        anchors = others = None
        if self._method.num_visual + self._method.num_audio > 0:
            anchors = [torch.from_numpy(np.asarray(row.anchors, np.float32)) for row in rows]
            others = [torch.from_numpy(np.asarray(row.other_anchors, np.float32)) for row in rows]
        phases = getattr(self._method, "max_train_phases", 0) if self._lockstep else 0
        # At any stage of ZeRO workers exchange the gradients of the same weights, those of the audio tower among them.
        return collate(plans, anchors=anchors, others=others, min_phases=phases, always_sound=True)

    def plan(self, row: PreparedRow) -> Plan:
        """One sample as a sequence."""
        waveform = row.waveform if self.config.use_audio_in_video else None
        media = prepare_media(row.frames, sample_fps=row.sample_fps, waveform=waveform)
        template = self._preparation.prompt
        builder = PlanBuilder(self._loaded.tokenizer, self._loaded.vocabulary, media, template=template)
        builder.chat_prompt(row.sample.question, row.sample.options)
        self._method.write(builder, row.sample)
        plan = builder.build()
        if len(plan) > self.config.max_length:
            raise ValueError(
                f"sample {row.sample.sample_id} has {len(plan)} positions, more than "
                f"max_length={self.config.max_length}; "
                "shorten the clip, lower video_max_pixels or raise max_length"
            )
        return plan

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Learning weights by part of the model: matrices with decay, vectors and embeddings without."""
        parts = parts_of(self._learner)
        owner = {id(p): part for part, module in parts.items() for p in module.parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                decays = _num_axes(parameter) >= 2 and "embed" not in name
                scale = self.config.lr_scale.get(owner[id(parameter)], 1.0)
                groups.setdefault((scale, decays), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
            for (scale, decays), parameters in groups.items()
        ]

    def begin_step(self, step: int, total_steps: int) -> None:
        """Called before every optimizer step, counted from 0: for what changes in the course of training."""
        self._learner.begin_step(step, total_steps)

    def export(self, folder: Path) -> None:
        """Write the model as a folder that stock `from_pretrained` and `load_reasoner` load.

        Adapters are added to a copy of the weights, and lie beside it in `adapter/` as well.
        """
        thinker, adapted = self._loaded.backbone.thinker, self.config.lora_rank > 0
        save_folder(
            folder,
            backbone=self._loaded.backbone,
            tokenizer=self._loaded.tokenizer,
            method=self._method,
            heads=self._learner.heads,
            preparation=self._preparation,
            state=merged_state(thinker) if adapted else None,
        )
        if adapted:
            # In a folder of its own: beside config.json, `from_pretrained` would add it a second time.
            save_adapter(thinker, folder / "adapter", base=self.config.model_name_or_path)


def _preparation(config: TaskConfig) -> Preparation:
    of_clips = {f.name: getattr(config, f.name) for f in fields(Preparation) if f.name != "prompt"}
    return Preparation(**of_clips, prompt=prompt_template(config.prompt, system_prompt=config.system_prompt))


def parts_of(learner: Learner) -> dict[str, nn.Module]:
    """The parts that settings name: vision, audio, llm, heads."""
    return {**cast(QwenOmniBackbone, learner.backbone).modules_by_group(), "heads": learner.heads}


def choose_weights(
    learner: Learner, config: TaskConfig, latent_ids: Sequence[int], *, whole: Whole = already_whole
) -> None:
    """Put adapters in and freeze what the config says; what learns afterwards has `requires_grad`.

    Adapters come with the rows of `latent_ids`, which nobody has trained yet, where the method uses them. Raises
    `ValueError` for a part that does not exist, and where nothing is left to learn.
    """
    method, backbone = learner.method, cast(QwenOmniBackbone, learner.backbone)
    groups = parts_of(learner)
    for key, names in (("freeze", config.freeze), ("lr_scale", config.lr_scale)):
        if unknown := sorted(set(names) - set(groups)):
            raise ValueError(f"{key} names {unknown}; the parts are {', '.join(groups)}")
    if config.lora_rank:
        if "llm" in config.freeze:
            raise ValueError("freeze names llm, where the adapters of lora_rank learn: take one of the two away")
        options = LoraOptions(
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target=config.lora_target,
        )
        add_adapters(backbone.thinker, options, new_ids=latent_ids if method.has_phases else (), whole=whole)
    for name in config.freeze:
        groups[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise ValueError(
            f"everything is frozen by freeze={list(config.freeze)}, and nothing is left to learn: take a part out of it"
        )


def _num_axes(parameter: nn.Parameter) -> int:
    # What a worker keeps of a divided weight is flat; DeepSpeed notes the true shape beside it.
    return len(getattr(parameter, "ds_shape", parameter.shape))


def build_task(options: Mapping[str, Any], *, lockstep: bool = False, whole: Whole = already_whole) -> ReasoningTask:
    """The task of a training config's `task` section. Raises `ValueError` for keys or values it does not take.

    Under ZeRO-3 workers gather weights together: `lockstep` makes every batch run equally many forwards of every part,
    and `whole` gives a context in which divided weights are whole.
    """
    return ReasoningTask(read_options(TaskConfig, options, owner="task", noun="field"), lockstep=lockstep, whole=whole)
