"""Decode clips and pool anchors: python jobs/preprocess.py --config jobs/configs/preprocess/film_tiny.yaml

A streaming Ray Data job: clips that cannot be used go to the quarantine table, never in the way of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from omni_model.anchors import AnchorEncoder, StoredDtype, build_clip_encoder
from omni_model.folder import Preparation
from omni_model.prompt import PromptName, prompt_template
from omni_platform.config import parse_args
from omni_platform.data.pipeline import PreprocessConfig, preprocess
from omni_platform.lease import refusals_in_one_line
from omni_platform.runtime import start_ray


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which model's towers make the anchors, and how they are stored."""

    model_name_or_path: str = "tiny"
    """A Hugging Face folder, a hub name, or `tiny` for the toy base."""
    visual_bins: int = AnchorEncoder.visual_bins
    """How finely visual features of a segment are pooled for storage: methods whose visual slots divide it can train
    on the result. Segments of fewer features than twice this are stored as they are, for any number of slots."""
    audio_bins: int = AnchorEncoder.audio_bins
    """The same for audio features and slots."""
    stored_dtype: StoredDtype = AnchorEncoder.dtype
    """Of stored features: float32, or float16 at half the size and three digits."""
    video_min_pixels: int = Preparation.video_min_pixels
    video_max_pixels: int = Preparation.video_max_pixels
    """Area of a frame as the model takes it."""
    prompt: PromptName = "open"
    """That of training (`task.prompt`): options and answers count in the length that data.max_length limits."""
    system_prompt: str = ""
    """That of training: it counts in that length too."""
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """The data stage and the encoder in it."""

    data: PreprocessConfig
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_cpus: int | None = None
    """CPUs of the Ray that is started where there is no cluster; by default all of this machine."""


CONFIG = PreprocessJob


@refusals_in_one_line()
def main() -> None:
    job = parse_args(PreprocessJob)
    start_ray(num_cpus=job.num_cpus)
    result = preprocess(job.data, _encoder_builder(job))
    print(result.summary, flush=True)


def _encoder_builder(job: PreprocessJob) -> partial:
    preparation = Preparation(
        fps=job.data.fps,
        fps_max_frames=job.data.fps_max_frames,
        video_min_pixels=job.encoder.video_min_pixels,
        video_max_pixels=job.encoder.video_max_pixels,
        use_audio_in_video=job.data.use_audio_in_video,
        prompt=prompt_template(job.encoder.prompt, system_prompt=job.encoder.system_prompt),
    )
    return partial(
        build_clip_encoder,
        model_name_or_path=job.encoder.model_name_or_path,
        visual_bins=job.encoder.visual_bins,
        audio_bins=job.encoder.audio_bins,
        dtype=job.encoder.stored_dtype,
        preparation=preparation,
        device=job.encoder.device,
    )


if __name__ == "__main__":
    main()
