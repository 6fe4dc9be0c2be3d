"""Anchors: the segment a trajectory refers to, encoded by the model's own towers and stored for any number of slots."""

# F = frames, H = W = picture side in pixels, S = segments, K = slots, D = model width, N = features.

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from omni_model.batch import join_media, moved
from omni_model.folder import Preparation, load_backbone
from omni_model.lengths import media_of_shape, sequence_length
from omni_model.pooling import fine_pool, norm_weighted_pool
from omni_model.processing import SAMPLE_RATE_HZ, TEMPORAL_PATCH, resize_frames
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import Media, prepare_media
from omni_model.vocabulary import Vocabulary
from omni_platform.schema import Sample, SegmentFeatures

StoredDtype = Literal["float32", "float16"]
_SHAPES_SEGMENTS = ("fps", "fps_max_frames", "video_min_pixels", "video_max_pixels", "use_audio_in_video")


@dataclass(frozen=True, kw_only=True)
class AnchorEncoder:
    """Encodes segment clips with the model's own towers (LatentOmni, 1.4) and pools them finely.

    Meant to live in an actor: it holds the towers.
    """

    backbone: QwenOmniBackbone
    preparation: Preparation
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    fingerprint: str
    """Hash of the tower weights and of everything else that shapes what is stored of a segment."""
    visual_bins: int = 64
    """Segments are stored finely pooled, for as many slots as divide this (see `fine_pool`)."""
    audio_bins: int = 32
    dtype: StoredDtype = "float32"
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
        """Positions of clip and words, without the slots and markers of any method; `frames` are prepared ones."""
        number, height_px, width_px = frames.shape[:3]
        num_samples = None if waveform is None else len(waveform)
        media = media_of_shape((number, height_px, width_px), sample_fps=sample_fps, num_samples=num_samples)
        return sequence_length(
            sample,
            media,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            template=self.preparation.prompt,
        )

    def segments(
        self,
        *,
        frames: np.ndarray,
        sample_fps: float,
        waveform: np.ndarray | None,
        spans: list[tuple[float, float]],
    ) -> list[SegmentFeatures]:
        """What the towers make of the given seconds of a clip, one by one, ready to be stored."""
        pieces = [cut_segment(frames, sample_fps, waveform, span) for span in spans]
        return [
            SegmentFeatures(
                visual=fine_pool(visual_ND, self.visual_bins, dtype=self.dtype),
                audio=fine_pool(audio_ND, self.audio_bins, dtype=self.dtype),
            )
            for visual_ND, audio_ND in encode_each(self.backbone, pieces, device=self.device)
        ]


def encode_anchors(
    backbone: QwenOmniBackbone,
    *,
    frames: np.ndarray,
    sample_fps: float,
    waveform: np.ndarray | None,
    spans: Sequence[tuple[float, float]],
    num_visual: int,
    num_audio: int,
    device: str = "cpu",
) -> np.ndarray:
    """Anchors of the given seconds of a clip, float32 (S, K, D), visual slots first; nothing is stored in between.

    Each segment is encoded as a clip of its own. Without sound the audio anchors are zeros.
    """
    pieces = [cut_segment(frames, sample_fps, waveform, span) for span in spans]
    pooled = [
        torch.cat([norm_weighted_pool(v, num_visual), norm_weighted_pool(a, num_audio)])
        for v, a in encode_each(backbone, pieces, device=device)
    ]
    return torch.stack(pooled).numpy() if pooled else np.zeros((0, num_visual + num_audio, backbone.width), np.float32)


def build_clip_encoder(
    *,
    model_name_or_path: str,
    visual_bins: int = AnchorEncoder.visual_bins,
    audio_bins: int = AnchorEncoder.audio_bins,
    dtype: StoredDtype = AnchorEncoder.dtype,
    preparation: Preparation | None = None,
    device: str = "cpu",
) -> AnchorEncoder:
    """Load the towers of a model as an anchor encoder."""
    preparation = preparation or Preparation()
    loaded = load_backbone(model_name_or_path)
    backbone = loaded.backbone.eval().to(device)
    # The prompt is none of it: how long sequences are is measured by the method that trains.
    shape = [getattr(preparation, name) for name in _SHAPES_SEGMENTS]
    return AnchorEncoder(
        backbone=backbone,
        tokenizer=loaded.tokenizer,
        vocabulary=loaded.vocabulary,
        preparation=preparation,
        visual_bins=visual_bins,
        audio_bins=audio_bins,
        dtype=dtype,
        fingerprint=_fingerprint(backbone, f"{shape} {visual_bins}+{audio_bins} {dtype}"),
        device=device,
    )


@torch.inference_mode()
def encode_each(
    backbone: QwenOmniBackbone, media: Sequence[Media], *, device: str = "cpu"
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Visual and audio features (N, D) of each clip, on the CPU; all through the towers on `device` in one go."""
    if not media:
        return []
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
