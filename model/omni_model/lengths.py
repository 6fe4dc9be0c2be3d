"""How many positions a sample's sequence has, told from the shape of its clip: nothing is encoded or even resampled."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from omni_model.methods import make_method
from omni_model.processing import MEL_BINS, PATCH_PX, TEMPORAL_PATCH, num_prepared_mel_frames
from omni_model.prompt import PromptTemplate
from omni_model.sequence import Media, PlanBuilder
from omni_model.vocabulary import Vocabulary
from omni_platform.schema import Sample, TextStep


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
    template: PromptTemplate,
) -> int:
    """Positions of prompt, clip and words: the trajectory's, or the bare answer where it has none.

    What a method puts at a look, its markers and slots, comes on top.
    """
    builder = PlanBuilder(tokenizer, vocabulary, media, template=template)
    builder.chat_prompt(sample.question, sample.options)
    words = any(isinstance(step, TextStep) for step in sample.trajectory)
    make_method("text_cot" if words else "sft").write(builder, sample)
    return len(builder.build())
