"""How many positions a sample's sequence has, told from the shape of its clip: nothing is encoded or even resampled."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from omni_model.methods import make_method
from omni_model.methods.base import Method
from omni_model.methods.latent_omni import LatentOmni
from omni_model.processing import MEL_BINS, PATCH_PX, TEMPORAL_PATCH, num_prepared_mel_frames
from omni_model.prompt import PromptTemplate
from omni_model.sequence import Media, PlanBuilder
from omni_model.vocabulary import Vocabulary
from omni_platform.schema import Sample


def media_of_shape(frames: tuple[int, int, int], *, sample_fps: float, num_samples: int | None) -> Media:
    """Media without content, good for laying out a sequence and not for running one.

    `frames` are (number, height_px, width_px) as prepared, `num_samples` those of 16 kHz sound, None for a mute clip.
    """
    number, height_px, width_px = frames
    grid = (-(-number // TEMPORAL_PATCH), height_px // PATCH_PX, width_px // PATCH_PX)
    mel_frames = 0 if num_samples is None else num_prepared_mel_frames(num_samples)
    return Media(
        patches=torch.empty(0),
        grid_thw=grid,
        seconds_per_grid=TEMPORAL_PATCH / sample_fps,
        mel=None if num_samples is None else torch.empty(MEL_BINS, mel_frames, device="meta"),
    )


def sequence_length(
    sample: Sample,
    media: Media,
    *,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    method: LatentOmni,
    template: PromptTemplate,
) -> int:
    """Positions of the whole sequence: prompt, clip, trajectory and, at every look, the method's slots.

    A sample without looks is laid out as the methods without latents would have it.
    """
    builder = PlanBuilder(tokenizer, vocabulary, media, template=template)
    builder.chat_prompt(sample.question, sample.options)
    _writer(sample, method).write(builder, sample)
    return len(builder.build())


def _writer(sample: Sample, method: LatentOmni) -> Method:
    if sample.looks:
        # Too many looks are for training to judge: here they are counted.
        return cast(Method, replace(method, max_train_phases=max(method.max_train_phases, len(sample.looks))))
    return make_method("text_cot" if sample.trajectory else "sft")
