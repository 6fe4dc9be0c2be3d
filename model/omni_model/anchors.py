"""Anchors: the moment a trajectory should look at, pooled into as many vectors as a phase has slots."""

# F = frames, H = W = picture side in pixels, S = segments, K = slots, D = model width, N = features.

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from omni_model.batch import join_media, moved
from omni_model.folder import Preparation, load_backbone
from omni_model.lengths import media_of_shape, sequence_length
from omni_model.methods.latent_omni import LatentOmni
from omni_model.pooling import norm_weighted_pool
from omni_model.processing import SAMPLE_RATE_HZ, TEMPORAL_PATCH, resize_frames
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import Media, prepare_media
from omni_model.vocabulary import Vocabulary
from omni_platform.schema import Sample


@dataclass(frozen=True, kw_only=True)
class AnchorEncoder:
    """Encodes segment clips with the model's own towers and pools them (LatentOmni, 1.4).

    Meant to live in an actor: it holds the towers.
    """

    backbone: QwenOmniBackbone
    preparation: Preparation
    num_visual: int
    num_audio: int
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    fingerprint: str
    """Hash of the tower weights and of everything that shapes an anchor or lengthens a sequence."""
    device: str = "cpu"

    @property
    def dim(self) -> int:
        """Width of an anchor."""
        return self.backbone.width

    def prepare_frames(self, frames: np.ndarray) -> np.ndarray:
        """Frames at the size the model takes: uint8 (F, H, W, 3)."""
        p = self.preparation
        return resize_frames(frames, min_pixels=p.video_min_pixels, max_pixels=p.video_max_pixels)

    def length(self, sample: Sample, *, frames: np.ndarray, sample_fps: float, waveform: np.ndarray | None) -> int:
        """Positions of the sample's whole sequence, with this many slots at every look; `frames` are prepared ones."""
        number, height_px, width_px = frames.shape[:3]
        num_samples = None if waveform is None else len(waveform)
        media = media_of_shape((number, height_px, width_px), sample_fps=sample_fps, num_samples=num_samples)
        return sequence_length(
            sample,
            media,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            method=LatentOmni(num_visual=self.num_visual, num_audio=self.num_audio),
            template=self.preparation.prompt,
        )

    @torch.inference_mode()
    def anchors(
        self,
        *,
        frames: np.ndarray,
        sample_fps: float,
        waveform: np.ndarray | None,
        spans: list[tuple[float, float]],
    ) -> np.ndarray:
        """Anchors of the given seconds of a clip, float32 (S, K, D), visual slots first.

        Each segment is encoded as a clip of its own. Without sound the audio anchors are zeros.
        """
        if not spans:
            return np.zeros((0, self.num_visual + self.num_audio, self.dim), np.float32)
        pieces = [cut_segment(frames, sample_fps, waveform, span) for span in spans]
        pooled = [
            torch.cat([norm_weighted_pool(v, self.num_visual), norm_weighted_pool(a, self.num_audio)])
            for v, a in encode_each(self.backbone, pieces, device=self.device)
        ]
        return torch.stack(pooled).numpy()


def build_clip_encoder(
    *,
    model_name_or_path: str,
    num_visual: int,
    num_audio: int,
    preparation: Preparation | None = None,
    device: str = "cpu",
) -> AnchorEncoder:
    """Load the towers of a model as an anchor encoder."""
    preparation = preparation or Preparation()
    loaded = load_backbone(model_name_or_path)
    backbone = loaded.backbone.eval().to(device)
    return AnchorEncoder(
        backbone=backbone,
        tokenizer=loaded.tokenizer,
        vocabulary=loaded.vocabulary,
        preparation=preparation,
        num_visual=num_visual,
        num_audio=num_audio,
        fingerprint=_fingerprint(backbone, f"{preparation} {num_visual}+{num_audio}"),
        device=device,
    )


def encode_each(
    backbone: QwenOmniBackbone, media: Sequence[Media], *, device: str = "cpu"
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Visual and audio features (N, D) of each clip, on the CPU; all through the towers on `device` in one go."""
    encoded = backbone.encode(moved(join_media(media), device))
    # Fetched whole: piece by piece a GPU would be asked hundreds of times.
    visual = encoded.visual_ND.cpu().split([m.num_visual_tokens for m in media])
    audio = encoded.audio_ND.cpu().split([m.num_audio_tokens for m in media])
    return list(zip(visual, audio, strict=True))


def cut_segment(frames: np.ndarray, sample_fps: float, waveform: np.ndarray | None, span: tuple[float, float]) -> Media:
    """The frames on screen and the sound heard in [start, end); at least one temporal patch of frames."""
    start_s, end_s = span
    first = min(int(np.ceil(start_s * sample_fps - 1e-6)), len(frames) - TEMPORAL_PATCH)
    last = max(int(np.ceil(end_s * sample_fps - 1e-6)), first + TEMPORAL_PATCH)
    sound = None
    if waveform is not None:
        sound = waveform[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    return prepare_media(frames[max(first, 0) : last], sample_fps=sample_fps, waveform=sound)


def _fingerprint(backbone: QwenOmniBackbone, shape: str) -> str:
    digest = hashlib.sha256(shape.encode())
    groups = backbone.modules_by_group()
    for group in ("vision", "audio"):
        for name, value in sorted(groups[group].state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
