"""A sample's trajectory as the assistant's turn: its words, and a phase of slots wherever it looks at the clip."""

from __future__ import annotations

import re

import torch

from omni_model.method_options import Words
from omni_model.prompt import PromptTemplate
from omni_model.scoring import parse_answer
from omni_model.sequence import Kind, PlanBuilder
from omni_platform.schema import Sample, Step, TextStep

_GIVEN = re.compile(r"\\boxed\{[^{}]*\}|\banswer(?:\s+is)?\s*:[^\n]+", re.IGNORECASE)
"""An answer in so many words, as `parse_answer` reads it first."""


def spoken(sample: Sample, words: Words, template: PromptTemplate) -> tuple[Step, ...]:
    """The trajectory with as much of its words as is to be said; its answer is written as the template says.

    Raises `ValueError` naming the sample where the trajectory ends in another answer than the sample's.
    """
    answer = template.taught_answer(sample.answer, sample.options)
    if words == "trajectory":
        return sample.trajectory if template.answer == "text" else _answered(sample, answer)
    if words == "evidence":
        return _evidence(sample, answer)
    first = next((i for i, step in enumerate(sample.trajectory) if not isinstance(step, TextStep)), 0)
    opening = sample.trajectory[:first] if words == "opening" else ()
    return (*opening, *sample.looks, TextStep(text=f"{' ' if opening else ''}{answer}"))


def _answered(sample: Sample, answer: str) -> tuple[Step, ...]:
    """The trajectory, its last words ending in the answer as it is taught in place of the one that they give."""
    if not sample.options:
        return sample.trajectory
    *before, last = sample.trajectory
    if not isinstance(last, TextStep):
        return (*sample.trajectory, TextStep(text=f" {answer}"))
    given = list(_GIVEN.finditer(last.text))
    if not given:
        gap = "" if last.text[-1:].isspace() else " "
        return (*before, TextStep(text=f"{last.text}{gap}{answer}"))
    read = parse_answer(given[-1][0], sample.options)
    if read.lower() != sample.answer.lower():
        raise ValueError(
            f"the trajectory of sample {sample.sample_id} ends in {given[-1][0]!r}, but its answer is "
            f"{sample.answer!r}: correct one of the two in the manifest"
        )
    start, end = given[-1].span()
    return (*before, TextStep(text=last.text[:start] + answer + last.text[end:]))


def _evidence(sample: Sample, answer: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    for step in sample.trajectory:
        if not isinstance(step, TextStep):
            steps.append(step)
        elif steps:
            steps.append(TextStep(text=re.split(r"\.(?:\s|$)", step.text)[0]))
    return (*steps, TextStep(text=f" {answer}"))


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
    for step in spoken(sample, words, builder.template):
        if isinstance(step, TextStep):
            builder.text(step.text, Kind.TEXT, learn=True)
        else:
            builder.latent_span(
                num_visual=num_visual, num_audio=num_audio, offsets=offsets, start_s=step.start_s, end_s=step.end_s
            )
    builder.end_turn()
