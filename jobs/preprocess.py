"""Decode clips and pool anchors: python jobs/preprocess.py --config jobs/configs/preprocess/film_tiny.yaml

A streaming Ray Data job: clips that cannot be used go to the quarantine table, never in the way of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from omni_model.anchors import build_clip_encoder
from omni_model.folder import Preparation
from omni_model.prompt import PromptName, prompt_template
from omni_platform.config import parse_args
from omni_platform.data.pipeline import PreprocessConfig, preprocess
from omni_platform.runtime import start_ray


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which model's towers make the anchors, and how the method lays a sample out."""

    model_name_or_path: str = "tiny"
    """A Hugging Face folder, a hub name, or `tiny` for the toy base."""
    num_visual: int = 4
    """Visual anchors per segment."""
    num_audio: int = 2
    """Audio anchors per segment."""
    video_min_pixels: int = Preparation.video_min_pixels
    video_max_pixels: int = Preparation.video_max_pixels
    """Area of a frame as the model takes it."""
    prompt: PromptName = "open"
    """That of training (`task.prompt`): options and answers count in the length of a sample."""
    system_prompt: str = ""
    """That of training: it counts in the length of a sample."""
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class PreprocessJob:
    """The data stage and the encoder in it."""

    data: PreprocessConfig
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    num_cpus: int | None = None
    """CPUs of the Ray that is started where there is no cluster; by default all of this machine."""


CONFIG = PreprocessJob


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
        num_visual=job.encoder.num_visual,
        num_audio=job.encoder.num_audio,
        preparation=preparation,
        device=job.encoder.device,
    )


if __name__ == "__main__":
    main()
