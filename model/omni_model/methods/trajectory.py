"""A sample's trajectory as the assistant's turn: its words, and a phase of slots wherever it looks at the clip."""

from __future__ import annotations

import re

import torch

from omni_model.method_options import Words
from omni_model.sequence import Kind, PlanBuilder
from omni_platform.schema import Sample, Step, TextStep


def spoken(sample: Sample, words: Words) -> tuple[Step, ...]:
    """The trajectory with as much of its words as is to be said."""
    if words == "trajectory":
        return sample.trajectory
    if words == "evidence":
        return _evidence(sample)
    first = next((i for i, step in enumerate(sample.trajectory) if not isinstance(step, TextStep)), 0)
    opening = sample.trajectory[:first] if words == "opening" else ()
    return (*opening, *sample.looks, TextStep(text=f"{' ' if opening else ''}Answer: {sample.answer}"))


def _evidence(sample: Sample) -> tuple[Step, ...]:
    steps: list[Step] = []
    for step in sample.trajectory:
        if not isinstance(step, TextStep):
            steps.append(step)
        elif steps:
            steps.append(TextStep(text=re.split(r"\.(?:\s|$)", step.text)[0]))
    return (*steps, TextStep(text=f" Answer: {sample.answer}"))


def write_trajectory(
    builder: PlanBuilder,
    sample: Sample,
    *,
    method: str,
    num_visual: int,
    num_audio: int,
    offsets: tuple[torch.Tensor, int],
    max_phases: int,
    words: Words,
) -> None:
    """Lay out words and looks in their order, every look as a trigger, its slots and a stop.

    Raises `ValueError` for a sample with no look, or with more than `max_phases`.
    """
    if not 1 <= len(sample.looks) <= max_phases:
        raise ValueError(
            f"sample {sample.sample_id} has {len(sample.looks)} looks; {method} takes 1 to "
            f"{max_phases} (max_train_phases). Shorten its trajectory or leave it out of the manifest"
        )
    for step in spoken(sample, words):
        if isinstance(step, TextStep):
            builder.text(step.text, Kind.TEXT, learn=True)
        else:
            builder.latent_span(
                num_visual=num_visual, num_audio=num_audio, offsets=offsets, start_s=step.start_s, end_s=step.end_s
            )
    builder.end_turn()
