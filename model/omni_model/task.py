"""What the training floor is given: the module, how rows become batches, which weights learn, and the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from omni_model.batch import Batch, collate
from omni_model.fingerprint import fingerprint_model
from omni_model.folder import (
    Preparation,
    Whole,
    already_whole,
    load_backbone,
    load_folder,
    save_folder,
    start_markers_like,
)
from omni_model.learner import Learner
from omni_model.lengths import media_of_shape
from omni_model.lora import LoraOptions, add_adapters, merged_state, save_adapter
from omni_model.methods import make_method
from omni_model.options import read_options
from omni_model.pooling import check_bins, pool_segments
from omni_model.processing import MERGE
from omni_model.prompt import prompt_template
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.rows import PreparedRow, RowOutline
from omni_model.sequence import IGNORE, EncodedClip, Media, Plan, PlanBuilder, prepare_media
from omni_model.task_config import TaskConfig
from omni_platform.schema import RowSize, Sample, SegmentFeatures


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
        self._learner = Learner(self._loaded.backbone, self._method, text_loss_reduction=config.text_loss_reduction)
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
        if self._method.needs_anchors:
            anchors = [self._pooled(row.anchors) for row in rows]
            others = [self._pooled(row.other_anchors) for row in rows]
        phases = getattr(self._method, "max_train_phases", 0) if self._lockstep else 0
        # At any stage of ZeRO workers exchange the gradients of the same weights, those of the audio tower among them.
        return collate(plans, anchors=anchors, others=others, min_phases=phases, always_sound=True)

    def plan(self, row: PreparedRow) -> Plan:
        """One sample as a sequence."""
        waveform = row.waveform if self.config.use_audio_in_video else None
        media = prepare_media(row.frames, sample_fps=row.sample_fps, waveform=waveform)
        plan = self._lay_out(row.sample, media)
        self._refuse_long(row.sample, len(plan))
        return plan

    def size(self, outline: RowOutline) -> RowSize:
        """The length of a row and what it adds to every loss term, without its clip: `len(plan(row))` in milliseconds.

        Raises `ValueError` for a row that this method cannot take, or that is too long.
        """
        if self._method.needs_anchors:
            slots = (self._method.num_visual, self._method.num_audio)
            for bins, length in zip(outline.pooled_bins, slots, strict=True):
                if bins is not None:
                    check_bins(bins, length)
        media = media_of_shape(
            (outline.num_frames, outline.height_px, outline.width_px),
            sample_fps=outline.sample_fps,
            num_samples=outline.num_samples if self.config.use_audio_in_video else None,
        )
        stub = _stub_of(media)
        plan = self._lay_out(outline.sample, stub)
        length = len(plan) + media.num_visual_tokens + media.num_audio_tokens
        length -= stub.num_visual_tokens + stub.num_audio_tokens
        self._refuse_long(outline.sample, length)
        learned = int((plan.labels[1:] != IGNORE).sum())
        by_sample = self.config.text_loss_reduction == "sample_mean"
        text = min(learned, 1) if by_sample else learned
        return RowSize(length=length, counts={"text": text, **self._method.counts(plan.spans, media)})

    def _pooled(self, segments: Sequence[SegmentFeatures]) -> torch.Tensor:
        """Stored segments for the slots of the method: float32 (segments, K, D)."""
        method = self._method
        width = self._loaded.backbone.width
        return pool_segments(segments, num_visual=method.num_visual, num_audio=method.num_audio, width=width)

    def _lay_out(self, sample: Sample, media: Media | EncodedClip) -> Plan:
        template = self._preparation.prompt
        builder = PlanBuilder(self._loaded.tokenizer, self._loaded.vocabulary, media, template=template)
        builder.chat_prompt(sample.question, sample.options)
        self._method.write(builder, sample)
        return builder.build()

    def _refuse_long(self, sample: Sample, length: int) -> None:
        if length > self.config.max_length:
            raise ValueError(
                f"sample {sample.sample_id} has {length} positions, more than max_length={self.config.max_length}; "
                "shorten the clip, lower video_max_pixels or raise max_length"
            )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Learning weights by part of the model: matrices with decay, vectors and embeddings without."""
        parts = parts_of(self._learner)
        scales: dict[str, float] = {**self.config.lr_scale}
        owner = {id(p): part for part, module in parts.items() for p in module.parameters()}
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                decays = _num_axes(parameter) >= 2 and "embed" not in name
                scale = scales.get(owner[id(parameter)], 1.0)
                groups.setdefault((scale, decays), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale}
            for (scale, decays), parameters in groups.items()
        ]

    @property
    def identity(self) -> dict[str, str]:
        """The content of the base weights: their name alone may come to mean others."""
        return {"base": fingerprint_model(self.config.model_name_or_path)}

    def load_weights(self, folder: Path) -> None:
        """Take the weights of an exported model, the method's own among them.

        Raises `ValueError` where the export is of another method or base, or where adapters are to learn.
        """
        if self._lockstep or self.config.lora_rank:
            raise ValueError(
                f"an exported model ({folder}) is loaded before weights are divided and adapters are added: give it as "
                "task.model_name_or_path, or give init_weights_from a checkpoint"
            )
        exported = load_folder(folder)
        if exported.method.name != self._method.name:
            raise ValueError(
                f"{folder} is a model of method {exported.method.name}, and this run learns {self._method.name}; "
                "give it as task.model_name_or_path to begin with its backbone alone"
            )
        try:
            self._loaded.backbone.load_state_dict(exported.loaded.backbone.state_dict())
            self._learner.heads.load_state_dict(exported.heads.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} does not fit the task's model: {error}") from None

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


def _stub_of(media: Media) -> EncodedClip:
    """A clip of one token of each sense that the other one has: laid out with the same markers, and at once."""
    return EncodedClip(
        visual_ND=torch.empty(1, 0),
        audio_ND=torch.empty(min(1, media.num_audio_tokens), 0),
        grid_thw=(1, MERGE, MERGE),
        seconds_per_grid=media.seconds_per_grid,
    )


def _num_axes(parameter: nn.Parameter) -> int:
    # What a worker keeps of a divided weight is flat; DeepSpeed notes the true shape beside it.
    return len(getattr(parameter, "ds_shape", parameter.shape))


def build_task(
    settings: TaskConfig | Mapping[str, Any], *, lockstep: bool = False, whole: Whole = already_whole
) -> ReasoningTask:
    """The task of a training config's `task` section. Raises `ValueError` for keys or values it does not take.

    Under ZeRO-3 workers gather weights together: `lockstep` makes every batch run equally many forwards of every part,
    and `whole` gives a context in which divided weights are whole.
    """
    return ReasoningTask(read_settings(settings), lockstep=lockstep, whole=whole)


def read_settings(settings: TaskConfig | Mapping[str, Any]) -> TaskConfig:
    """A task's settings from plain values, where they are not typed yet."""
    if isinstance(settings, TaskConfig):
        return settings
    return read_options(TaskConfig, settings, owner="task", noun="field")
