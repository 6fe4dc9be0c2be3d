"""A trained model that answers questions about clips and says where it looked."""

# F = frames, K = slots, D = model width, N = features, W = windows of the clip.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from omni_model.batch import collate
from omni_model.device import pick_device, weights_dtype
from omni_model.embedding import embed_batch
from omni_model.folder import Exported, load_folder
from omni_model.generate import LatentOverride, Rollout, generate
from omni_model.pooling import norm_weighted_pool
from omni_model.processing import (
    MERGE,
    PATCH_PX,
    TEMPORAL_PATCH,
    fit_size,
    num_audio_tokens,
    num_prepared_mel_frames,
    resize_frames,
)
from omni_model.scoring import parse_answer
from omni_model.sequence import Kind, Plan, PlanBuilder, prepare_media

_SMALLEST_PX = PATCH_PX * MERGE
_MARKERS, _MARKERS_WITH_SOUND = 2, 4
"""Positions that open and close a clip."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question about a decoded clip."""

    question: str
    frames: np.ndarray
    """uint8 (F, H, W, 3), at the sampling rate below"""
    sample_fps: float
    waveform: np.ndarray | None
    """float32, 16 kHz mono; None for a clip without sound"""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A piece of the clip that a phase's latents resemble most."""

    modality: str
    start_s: float
    end_s: float
    similarity: float
    """Cosine to the latents, after taking away what all moments of the clip have in common."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One time the model went back to look and listen."""

    position: int
    """Index of its trigger among the generated positions."""
    num_visual: int
    num_audio: int
    moments: tuple[Moment, ...]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model said."""

    text: str
    answer: str
    phases: tuple[Phase, ...]
    prompt_tokens: int
    completion_tokens: int
    latent_steps: int
    finish_reason: str


class Reasoner:
    """An exported model with its tokenizer and its way of preparing clips."""

    def __init__(self, exported: Exported, device: str) -> None:
        self._model = exported
        self._device = device
        self._backbone = exported.loaded.backbone.eval().to(device)
        self._heads = exported.heads.eval().to(device)

    @property
    def fps(self) -> float:
        """Frames a second to decode."""
        return self._model.preparation.fps

    @property
    def max_frames(self) -> int:
        """At most so many frames."""
        return self._model.preparation.fps_max_frames

    @property
    def method_name(self) -> str:
        return self._model.method.name

    @property
    def num_slots(self) -> int:
        """Latent slots of a phase; 0 for methods without latents."""
        return self._model.method.num_visual + self._model.method.num_audio

    @property
    def max_positions(self) -> int:
        """Positions that the model was made for, as its configuration names them."""
        return int(self._backbone.thinker.config.get_text_config().max_position_embeddings)

    def prompt_positions(self, question: str, options: tuple[str, ...] = ()) -> int:
        """Positions of a prompt without its clip: what `plan` lays out around it."""
        black = np.zeros((1, _SMALLEST_PX, _SMALLEST_PX, 3), np.uint8)
        ask = Ask(question=question, frames=black, sample_fps=self.fps, waveform=None, options=options)
        smallest = self.clip_positions(num_frames=1, height=_SMALLEST_PX, width=_SMALLEST_PX, num_samples=0)
        return len(self.plan(ask)) - smallest

    def clip_positions(self, *, num_frames: int, height: int, width: int, num_samples: int) -> int:
        """Positions of a clip with its markers, by arithmetic: frames as decoded, samples of sound at 16 kHz."""
        p = self._model.preparation
        rows, columns = fit_size(height, width, min_pixels=p.video_min_pixels, max_pixels=p.video_max_pixels)
        patches = -(-num_frames // TEMPORAL_PATCH) * (rows // PATCH_PX) * (columns // PATCH_PX)
        heard = p.use_audio_in_video and num_samples > 0
        sound = num_audio_tokens(num_prepared_mel_frames(num_samples)) if heard else 0
        return patches // MERGE**2 + sound + (_MARKERS_WITH_SOUND if sound else _MARKERS)

    def answer(
        self,
        asks: Sequence[Ask],
        *,
        max_new_tokens: int = 64,
        max_phases: int = 4,
        override: LatentOverride | None = None,
    ) -> list[Reply]:
        """Answer a batch of questions; each reply is what the question alone would get.

        `override` replaces the latents that are fed, for controls.
        """
        plans = [self.plan(ask) for ask in asks]
        rollouts = self.rollouts(plans, max_new_tokens=max_new_tokens, max_phases=max_phases, override=override)
        return self.replies(asks, plans, rollouts)

    def replies(self, asks: Sequence[Ask], plans: Sequence[Plan], rollouts: Sequence[Rollout]) -> list[Reply]:
        """Read rollouts as replies."""
        return [self._reply(a, p, r) for a, p, r in zip(asks, plans, rollouts, strict=True)]

    def plan(self, ask: Ask) -> Plan:
        """The prompt of a question. Raises `ValueError` for options that cannot be put to the model."""
        p, loaded = self._model.preparation, self._model.loaded
        frames = resize_frames(ask.frames, min_pixels=p.video_min_pixels, max_pixels=p.video_max_pixels)
        waveform = ask.waveform if p.use_audio_in_video else None
        media = prepare_media(frames, sample_fps=ask.sample_fps, waveform=waveform)
        builder = PlanBuilder(loaded.tokenizer, loaded.vocabulary, media, template=p.prompt)
        return builder.chat_prompt(ask.question, ask.options).build()

    def rollouts(
        self,
        plans: Sequence[Plan],
        *,
        max_new_tokens: int = 64,
        max_phases: int = 4,
        override: LatentOverride | None = None,
    ) -> list[Rollout]:
        """Continue prompts; the events behind `answer`."""
        return generate(
            self._backbone,
            self._heads,
            self._model.method,
            self._model.loaded.vocabulary,
            plans,
            max_new_tokens=max_new_tokens,
            max_phases=max_phases,
            override=override,
            device=self._device,
        )

    def _reply(self, ask: Ask, plan: Plan, rollout: Rollout) -> Reply:
        text = str(self._model.loaded.tokenizer.decode(rollout.tokens, skip_special_tokens=True)).strip()
        phases = self._phases(plan, rollout)
        return Reply(
            text=text,
            answer=parse_answer(text, ask.options, lettered=self._model.preparation.prompt.options == "lettered"),
            phases=phases,
            prompt_tokens=len(plan),
            completion_tokens=len(rollout.tokens),
            latent_steps=rollout.latent_steps,
            finish_reason=rollout.finish_reason,
        )

    @torch.inference_mode()
    def _phases(self, plan: Plan, rollout: Rollout) -> tuple[Phase, ...]:
        opened = [i for i, e in enumerate(rollout.events) if e.type == "token" and e.phase >= 0]
        if not opened:
            return ()
        batch = collate([plan]).to(self._device)
        features_LD = embed_batch(self._backbone, batch).inputs_BLD[0]
        num_visual, num_audio = self._model.method.num_visual, self._model.method.num_audio
        phases = []
        for phase, position in enumerate(opened):
            latents_KD = rollout.latents(phase)
            moments = []
            for name, kind, part in (
                ("visual", Kind.VISUAL, latents_KD[:num_visual]),
                ("audio", Kind.AUDIO, latents_KD[num_visual:]),
            ):
                of_kind = plan.kinds == kind
                if len(part) and bool(of_kind.any()):
                    moments.append(
                        _nearest(
                            name,
                            part,
                            features_LD[of_kind],
                            plan.times_s[of_kind],
                            plan.media.seconds_per_grid,
                        )
                    )
            phases.append(Phase(position=position, num_visual=num_visual, num_audio=num_audio, moments=tuple(moments)))
        return tuple(phases)


def load_reasoner(folder: str | Path, device: str = "auto") -> Reasoner:
    """Load an exported folder; `auto` takes a GPU where there is one."""
    device = pick_device(device)
    return Reasoner(load_folder(folder, dtype=weights_dtype(device)), device)


def _nearest(
    modality: str, latents_KD: torch.Tensor, features_ND: torch.Tensor, times_s: torch.Tensor, window_s: float
) -> Moment:
    """The window of the clip whose pooled features are nearest to the latents on average."""
    window = (times_s / window_s + 1e-4).long()
    pooled_WKD = torch.stack([norm_weighted_pool(features_ND[window == w], len(latents_KD)) for w in window.unique()])
    # What all moments share says nothing about which one is meant.
    common_KD = pooled_WKD.mean(0)
    scores_W = F.cosine_similarity(pooled_WKD - common_KD, latents_KD.float() - common_KD, dim=-1).mean(-1)
    best = int(scores_W.argmax())
    start_s = float(window.unique()[best]) * window_s
    return Moment(
        modality=modality,
        start_s=start_s,
        end_s=start_s + window_s,
        similarity=round(float(scores_W[best]), 4),
    )
