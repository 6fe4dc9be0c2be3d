"""What the training floor is given: the module, how rows become batches, which weights learn, and the export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from omni_model.batch import Batch, collate
from omni_model.folder import Preparation, load_backbone, save_folder
from omni_model.learner import Learner
from omni_model.methods import make_method
from omni_model.options import read_options
from omni_model.rows import PreparedRow
from omni_model.sequence import Plan, PlanBuilder, prepare_media


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which model learns which method, and which of its parts."""

    model_name_or_path: str = "tiny"
    """Folder, hub name, or `tiny` for the toy base that ships with the package."""
    method: str = "latent_omni"
    """latent_omni, text_cot or sft."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""
    freeze: tuple[str, ...] = ("vision",)
    """Parts that do not learn: vision, audio, llm."""
    max_length: int = 32768
    """Samples with more positions than this are refused, never cut."""
    fps: float = 2.0
    fps_max_frames: int = 256
    video_min_pixels: int = 56 * 56
    video_max_pixels: int = 56 * 56
    use_audio_in_video: bool = True
    system_prompt: str = ""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass; only with engines that run without a cache."""
    pad_phases: bool = False
    """Give every batch `max_train_phases` phases, so that ranks that gather weights together stay in step (ZeRO-3)."""


class ReasoningTask:
    """One model learning one method."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self._method = make_method(config.method, config.options)
        self._loaded = load_backbone(config.model_name_or_path)
        self._preparation = Preparation(**{f.name: getattr(config, f.name) for f in fields(Preparation)})
        self._learner = Learner(self._loaded.backbone, self._method)
        self.module: nn.Module = self._learner
        self._freeze()
        if config.gradient_checkpointing:
            self._checkpoint_activations()

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of every raw term in the loss."""
        return {"text": 1.0, **self._method.weights}

    def collate(self, rows: Sequence[PreparedRow]) -> Batch:
        """Lay rows out and pad them to one batch. Raises `ValueError` naming a sample that is too long."""
        plans = [self.plan(row) for row in rows]
        anchors = None
        if self._method.num_visual + self._method.num_audio > 0:
            anchors = [torch.from_numpy(np.asarray(row.anchors, np.float32)) for row in rows]
        phases = getattr(self._method, "max_train_phases", 0) if self.config.pad_phases else 0
        return collate(plans, anchors=anchors, min_phases=phases)

    def plan(self, row: PreparedRow) -> Plan:
        """One sample as a sequence."""
        waveform = row.waveform if self.config.use_audio_in_video else None
        media = prepare_media(row.frames, sample_fps=row.sample_fps, waveform=waveform)
        builder = PlanBuilder(self._loaded.tokenizer, self._loaded.vocabulary, media)
        builder.chat_prompt(row.sample.question, system_prompt=self.config.system_prompt)
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
        """Learning weights in two groups: matrices with decay, vectors and embeddings without."""
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        decayed = [p for n, p in named if p.ndim >= 2 and "embed" not in n]
        kept = [p for n, p in named if p.ndim < 2 or "embed" in n]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def export(self, folder: Path) -> None:
        """Write the model as a folder that stock `from_pretrained` and `load_reasoner` load."""
        save_folder(
            folder,
            backbone=self._loaded.backbone,
            tokenizer=self._loaded.tokenizer,
            method=self._method,
            heads=self._learner.heads,
            preparation=self._preparation,
        )

    def _freeze(self) -> None:
        groups = self._loaded.backbone.modules_by_group()
        unknown = set(self.config.freeze) - set(groups)
        if unknown:
            raise ValueError(f"cannot freeze {sorted(unknown)}; the parts are {', '.join(groups)}")
        for name in self.config.freeze:
            groups[name].requires_grad_(False)

    def _checkpoint_activations(self) -> None:
        has_slots = self._method.num_visual + self._method.num_audio > 0
        if has_slots and self._method.unroll.engine != "teacher_parallel":
            raise ValueError(
                "gradient_checkpointing drops the cache that a recurrent rollout needs; switch it off, or set "
                "options.engine to teacher_parallel"
            )
        self._loaded.backbone.thinker.gradient_checkpointing_enable({"use_reentrant": False})


def build_task(options: Mapping[str, Any]) -> ReasoningTask:
    """The task of a training config's `task` section. Raises `ValueError` for keys or values it does not take."""
    return ReasoningTask(read_options(TaskConfig, options, owner="task", noun="field"))
