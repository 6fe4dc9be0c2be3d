"""Train one method on encoded clips: the same losses and engines as the training jobs, without towers, files or Ray.

With frozen towers and many questions behind each clip a toy model learns a method in a minute or two of one core, so
that methods can be compared over many settings and seeds. A trial is a pure function of its config and its clips.
"""

# B = rows, K = slots, D = model width.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval
from torch import nn

from omni_model.batch import Batch, collate
from omni_model.device import Precision, multiplying_in
from omni_model.encoded import EncodedQuestions, Span
from omni_model.folder import Loaded, start_markers_like
from omni_model.learner import Learner
from omni_model.method_options import Count, Natural, NotNegative, Positive
from omni_model.methods.base import Method
from omni_model.sequence import Plan, PlanBuilder
from omni_platform.schema import LookStep, Sample, TextStep


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One method, trained once."""

    method: str = "latent_omni"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method. Those given alone: a cell's name in a sweep must not change with a new option."""
    seed: Natural = 0
    """Draws the order of clips and the new weights."""
    steps: Count = 600
    clips_per_step: Count = 16
    learning_rate: Positive = 1e-3
    warmup_steps: Natural = 20
    """After which the rate falls to zero as a cosine."""
    weight_decay: NotNegative = 0.05
    adam_beta2: Annotated[float, Interval(ge=0, lt=1)] = 0.98
    max_grad_norm: Positive = 1.0
    num_clips: Count | None = None
    """Only the first so many clips, seen again and again; None for all."""
    families: tuple[str, ...] = ()
    """Only questions of these types; none named is all."""
    questions_per_clip: Count | None = None
    """So many questions about a clip in a step, drawn anew each time; None for all."""
    train_parts: tuple[str, ...] = ("llm", "heads")
    markers_like: str | None = None
    """Text of the token that lends its row to trigger and stop before training (`start_markers_like`)."""


Report = Callable[[int, Learner, dict[str, float]], None]
"""(steps done, the learner, mean terms since the last report)"""


def train(
    loaded: Loaded,
    method: Method,
    clips: Sequence[EncodedQuestions],
    config: TrialConfig,
    *,
    every: int,
    report: Report,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Learner:
    """Train a method from a loaded base; `report` is called every so many steps and at the end.

    The learner stays on `device`. Raises `ValueError` where no question is left to learn from.
    """
    torch.manual_seed(config.seed)
    if config.markers_like is not None:
        start_markers_like(loaded, config.markers_like)
    learner = Learner(loaded.backbone, method).to(device).train()
    _freeze(learner, config.train_parts)
    kept = chosen(clips, config.families, config.num_clips)
    lessons = Lessons(loaded, method, kept, questions_per_clip=config.questions_per_clip)
    order = _order(len(lessons), config)
    optimizer = torch.optim.AdamW(
        _groups(learner, config.weight_decay), lr=config.learning_rate, betas=(0.9, config.adam_beta2)
    )
    sums: dict[str, torch.Tensor] = {}
    for step in range(config.steps):
        learner.begin_step(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _share_of_peak(step, config)
        batch = lessons.batch(order[step], draw=(config.seed, step)).to(device)
        with multiplying_in(precision, device):
            terms = learner(batch)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(learner.parameters(), config.max_grad_norm)
        optimizer.step()
        # Added up where they are: a figure that is fetched makes a GPU wait in every step.
        told = {name: value for name, value in terms.items() if not name.startswith("count/")}
        sums = {name: sums.get(name, 0.0) + value.detach().double() for name, value in told.items()}
        if (step + 1) % every == 0 or step + 1 == config.steps:
            since = (step % every) + 1
            report(step + 1, learner, {name: float(value) / since for name, value in sums.items()})
            sums = {}
            learner.train()
    return learner


def chosen(
    clips: Sequence[EncodedQuestions], families: Sequence[str], num_clips: int | None = None
) -> list[EncodedQuestions]:
    """The first clips that have questions of the named types, with those questions alone."""
    kept = []
    for clip in clips[:num_clips]:
        samples = tuple(s for s in clip.samples if not families or s.question_type in families)
        if samples:
            kept.append(replace(clip, samples=samples))
    if not kept:
        raise ValueError(f"no clip has a question of the types {list(families)}")
    return kept


class Lessons:
    """Clips with their questions as batches: every clip once, its questions behind it."""

    def __init__(
        self,
        loaded: Loaded,
        method: Method,
        clips: Sequence[EncodedQuestions],
        *,
        questions_per_clip: Count | None = None,
    ) -> None:
        self._method, self._clips, self._questions_per_clip = method, clips, questions_per_clip
        self._layouts = Layouts(loaded, method)

    def __len__(self) -> int:
        return len(self._clips)

    def batch(self, indices: Sequence[int], *, draw: tuple[int, int] = (0, 0)) -> Batch:
        """Questions about the clips of the given numbers: all of them, or some, as `draw` (seed, step) decides."""
        rng = np.random.default_rng(draw)
        plans: list[Plan] = []
        anchors: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for index in indices:
            clip = self._clips[index]
            count = min(self._questions_per_clip or len(clip.samples), len(clip.samples))
            asked = sorted(rng.permutation(len(clip.samples))[:count].tolist())
            plans += [self._layouts.lesson(clip, clip.samples[i]) for i in asked]
            if self._method.needs_anchors:
                by_span = segment_anchors(clip, self._method)
                anchors += [anchors_of(clip.samples[i], by_span) for i in asked]
                # Those looked at are among them once more; the loss tells the same segment by its anchors.
                others.append(torch.stack(list(by_span.values())))
        if not self._method.needs_anchors:
            return collate(plans, share_clips=True)
        return collate(plans, anchors=anchors, others=others, share_clips=True)


class Layouts:
    """Lays questions out, and remembers how: clips of one shape differ in their features alone."""

    def __init__(self, loaded: Loaded, method: Method) -> None:
        self._loaded, self._method = loaded, method
        self._known: dict[tuple, Plan] = {}

    def lesson(self, clip: EncodedQuestions, sample: Sample) -> Plan:
        """A question with its answer."""
        words = tuple(step.text if isinstance(step, TextStep) else "" for step in sample.trajectory)
        plan = self._layout(clip, sample, (sample.question, sample.answer, words))
        looks = [step for step in sample.trajectory if isinstance(step, LookStep)]
        spans = tuple(
            replace(span, start_s=look.start_s, end_s=look.end_s)
            for span, look in zip(plan.spans, looks if plan.spans else [], strict=True)
        )
        return replace(plan, spans=spans)

    def prompt(self, clip: EncodedQuestions, sample: Sample) -> Plan:
        """A question to answer."""
        return self._layout(clip, sample, (sample.question,))

    def _layout(self, clip: EncodedQuestions, sample: Sample, words: tuple) -> Plan:
        media = clip.clip
        key = (*words, media.grid_thw, media.seconds_per_grid, media.num_audio_tokens)
        if key not in self._known:
            builder = PlanBuilder(self._loaded.tokenizer, self._loaded.vocabulary, media).chat_prompt(sample.question)
            if len(words) > 1:
                self._method.write(builder, sample)
            self._known[key] = builder.build()
        return replace(self._known[key], media=media)


def segment_anchors(clip: EncodedQuestions, method: Method) -> dict[Span, torch.Tensor]:
    """Anchors of every segment of a clip for the slots of a method, float32 (K, D)."""
    return clip.segments.anchors(num_visual=method.num_visual, num_audio=method.num_audio)


def anchors_of(sample: Sample, by_span: Mapping[Span, torch.Tensor]) -> torch.Tensor:
    """Anchors of a question's looks, float32 (P, K, D)."""
    return torch.stack([by_span[look.start_s, look.end_s] for look in sample.looks])


def _freeze(learner: Learner, train_parts: Sequence[str]) -> None:
    learner.requires_grad_(False)
    parts = {**learner.backbone.modules_by_group(), "heads": learner.heads}
    for name in train_parts:
        parts[name].requires_grad_(True)


def _groups(learner: Learner, weight_decay: float) -> list[dict[str, Any]]:
    learned = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in learned:
        parts[parameter.ndim >= 2 and "embed" not in name].append(parameter)
    return [{"params": params, "weight_decay": weight_decay * decays} for decays, params in parts.items()]


def _order(count: int, config: TrialConfig) -> list[list[int]]:
    """Which clips each step takes: epochs in random order, one after the other."""
    generator = torch.Generator().manual_seed(config.seed)
    needed, order = config.steps * config.clips_per_step, []
    while len(order) < needed:
        order += torch.randperm(count, generator=generator).tolist()
    return [order[i : i + config.clips_per_step] for i in range(0, needed, config.clips_per_step)]


def _share_of_peak(step: int, config: TrialConfig) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * done))
