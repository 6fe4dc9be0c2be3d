"""Train the toy base from random weights: staged skills, gated on accuracy, many questions behind one clip.

From answers alone a model this small learns nothing; captions first, then keyed captions, then single questions
teach it to look things up across the senses. A stage ends when its skills are learned, never by the clock.
"""

# B = clips, L = positions, V = vocabulary.

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from omni_model.backbone import Backbone
from omni_model.batch import Batch, collate
from omni_model.embedding import embed_batch
from omni_model.masks import allowed, look_at, with_self
from omni_model.sequence import IGNORE, Kind, Media, Plan, PlanBuilder
from omni_model.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the curriculum."""

    name: str
    mix: Mapping[str, int]
    """How many questions of each family stand behind every clip."""
    until: Mapping[str, float]
    """Held-out accuracy at which the stage is done; all must be reached."""
    max_clips: int
    """Where the stage gives up; the run then starts again with another seed."""
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """The whole course."""

    stages: tuple[Stage, ...]
    clips_per_step: int = 16
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    eval_every_clips: int = 800
    eval_clips: int = 128
    seed: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A clip and the questions packed behind it."""

    media: Media
    questions: tuple[tuple[str, str, str], ...]
    """(family, question, answer)"""


Teach = Callable[[int, Mapping[str, int]], Lesson]
"""Lesson number i for a mix; negative numbers are held out."""


class StageFailed(RuntimeError):
    """A stage did not reach its gate within its clips."""


def pack(lesson: Lesson, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> tuple[Plan, torch.Tensor]:
    """Lay a lesson out as one sequence; returns the plan and, per position, which question it belongs to (-1 none)."""
    builder = PlanBuilder(tokenizer, vocabulary, lesson.media).clip_turn()
    for _, question, answer in lesson.questions:
        builder.new_block().question_turn(question)
        builder.text(f" {answer}", Kind.TEXT, learn=True).end_turn()
    plan = builder.build()
    return plan, plan.blocks - 1


def packed_loss(backbone: Backbone, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over learned tokens, and bool (B, L): the token predicted for a position is right."""
    hidden = run_whole(backbone, batch)
    wanted = batch.labels_BL[:, 1:]
    learned = wanted != IGNORE
    logits = backbone.logits(hidden[:, :-1][learned])
    loss = F.cross_entropy(logits, wanted[learned])
    right = torch.zeros_like(batch.labels_BL, dtype=torch.bool)
    right[:, 1:][learned] = logits.argmax(-1) == wanted[learned]
    return loss, right


def run_whole(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """One forward over a batch without latent phases: hidden states (B, L, D)."""
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="none", training=True))
    return backbone.run(
        embed_batch(backbone, batch).inputs_BLD, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask
    )


def run_curriculum(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: CurriculumConfig,
    *,
    teach: Teach,
    report: Callable[[str, int, Mapping[str, float]], None],
    load: Callable[[Iterable[int], Callable[[int], object]], Iterator] | None = None,
) -> dict[str, float]:
    """Take the model through all stages; returns the last held-out accuracies.

    `report(stage, clips, figures)` is called at every evaluation. `load` maps lesson numbers to packed lessons, for
    callers who want worker processes. Raises `StageFailed` where a gate is not reached.
    """
    assert isinstance(backbone, nn.Module)
    figures: dict[str, float] = {}
    lesson_number = 0
    for stage in config.stages:
        optimizer = torch.optim.AdamW(
            backbone.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        make = Packer(tokenizer, vocabulary, teach, dict(stage.mix))
        held_out = [make(-1 - i) for i in range(config.eval_clips)]
        numbers = range(lesson_number, lesson_number + stage.max_clips)
        lessons = load(numbers, make) if load else map(make, numbers)
        started, losses, clips, step = time.monotonic(), [], 0, 0
        while clips < stage.max_clips:
            batch = collate([next(lessons)[0] for _ in range(config.clips_per_step)])
            clips += config.clips_per_step
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * min(1.0, step / config.warmup_steps)
            loss, _ = packed_loss(backbone, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(backbone.parameters(), config.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
            if clips % config.eval_every_clips < config.clips_per_step:
                figures = accuracy_by_family(backbone, held_out, config.clips_per_step)
                speed = clips / (time.monotonic() - started)
                report(stage.name, clips, {"loss": sum(losses) / len(losses), "clips_per_s": speed, **figures})
                losses = []
                if all(figures[family] >= gate for family, gate in stage.until.items()):
                    break
        else:
            raise StageFailed(f"stage {stage.name} did not reach {dict(stage.until)} within {clips} clips: {figures}")
        lesson_number += stage.max_clips
    return figures


class Packer:
    """Lesson number to packed lesson; a class so that worker processes can receive it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, teach: Teach, mix: dict[str, int]
    ) -> None:
        self._tokenizer, self._vocabulary, self._teach, self._mix = tokenizer, vocabulary, teach, mix

    def __call__(self, number: int) -> tuple[Plan, torch.Tensor, list[str]]:
        lesson = self._teach(number, self._mix)
        plan, question = pack(lesson, self._tokenizer, self._vocabulary)
        return plan, question, [family for family, _, _ in lesson.questions]


@torch.no_grad()
def accuracy_by_family(backbone: Backbone, packed: list, rows: int) -> dict[str, float]:
    """Share of answer tokens predicted right, the earlier ones given (end-of-turn tokens aside)."""
    hits: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(packed), rows):
        part = packed[start : start + rows]
        batch = collate([plan for plan, _, _ in part])
        _, right = packed_loss(backbone, batch)
        for i, (plan, question, families) in enumerate(part):
            last = plan.labels.roll(-1) == IGNORE
            for j, family in enumerate(families):
                where = (question == j) & (plan.labels != IGNORE) & ~last
                hits[family].append(right[i, : len(plan)][where].float().mean().item())
    return {family: sum(h) / len(h) for family, h in hits.items()}
