"""Train the toy base from random weights: staged skills, gated on accuracy, many questions behind one clip.

From answers alone a model this small learns nothing. Captions of short clips, then of full ones, then keyed captions,
then single questions teach it to look things up across the senses. A stage ends when its skills are learned, never by
the clock; one that does not get there ends the attempt.
"""

# B = clips, L = positions, D = model width.

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from omni_model.batch import Batch, collate
from omni_model.embedding import embed_batch
from omni_model.losses import learned_positions
from omni_model.masks import allowed, look_at, with_self
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.sequence import IGNORE, Kind, Media, Plan, PlanBuilder
from omni_model.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the curriculum."""

    name: str
    mix: dict[str, int]
    """How many questions of each family stand behind every clip."""
    until: dict[str, float]
    """Held-out accuracy at which the stage is done; all must be reached."""
    max_clips: int
    """Where the stage gives up."""
    num_shots: int = 6
    """Length of the clips: short ones first make captions click several times sooner."""
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class CourseConfig:
    """The whole course."""

    stages: tuple[Stage, ...]
    clips_per_step: int = 16
    warmup_steps: int = 100
    """Of every stage; the optimizer starts anew with each."""
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    eval_every_clips: int = 800
    eval_clips: int = 128


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A clip and the questions packed behind it."""

    media: Media
    questions: tuple[tuple[str, str, str], ...]
    """(family, question, answer)"""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A lesson as one sequence."""

    plan: Plan
    families: tuple[str, ...]
    """Family of block 1, 2, …"""


class StageError(RuntimeError):
    """A stage did not reach its gate within its clips."""


Teach = Callable[[int, Stage], Lesson]
"""Lesson number i of a stage; negative numbers are held out."""
Load = Callable[[Callable[[int], Batch], Iterable[int]], Iterator[Batch]]
"""Maps step numbers to batches, perhaps in worker processes."""
Report = Callable[[str, int, dict[str, float]], None]
"""(stage, clips seen in it, figures), called at every evaluation."""


@dataclass(frozen=True)
class Packer:
    """Lesson number to packed lesson; a class so that worker processes can receive it."""

    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    teach: Teach
    stage: Stage

    def __call__(self, number: int) -> Packed:
        lesson = self.teach(number, self.stage)
        builder = PlanBuilder(self.tokenizer, self.vocabulary, lesson.media).clip_turn()
        for _, question, answer in lesson.questions:
            builder.new_block().question_turn(question)
            builder.text(f" {answer}", Kind.TEXT, learn=True).end_turn()
        return Packed(plan=builder.build(), families=tuple(family for family, _, _ in lesson.questions))


@dataclass(frozen=True)
class BatchMaker:
    """Step number to a batch of lessons. Whole batches travel between processes: single lessons cost more to send."""

    packer: Packer
    clips_per_step: int
    first: int
    """Number of the stage's first lesson."""

    def __call__(self, step: int) -> Batch:
        start = self.first + step * self.clips_per_step
        return collate([self.packer(number).plan for number in range(start, start + self.clips_per_step)])


def run_course(
    backbone: QwenOmniBackbone,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    config: CourseConfig,
    *,
    teach: Teach,
    report: Report,
    load: Load = map,
) -> dict[str, float]:
    """Take the model through all stages; returns the last held-out accuracies by family.

    Raises `StageError` where a gate is not reached.
    """
    figures: dict[str, float] = {}
    first = 0
    for stage in config.stages:
        packer = Packer(tokenizer, vocabulary, teach, stage)
        maker = BatchMaker(packer, config.clips_per_step, first)
        batches = load(maker, range(stage.max_clips // config.clips_per_step))
        held_out = [packer(-1 - i) for i in range(config.eval_clips)]
        figures = _run_stage(backbone, stage, config, batches, held_out, report)
        first += stage.max_clips
    return figures


def _run_stage(
    backbone: QwenOmniBackbone,
    stage: Stage,
    config: CourseConfig,
    batches: Iterator[Batch],
    held_out: Sequence[Packed],
    report: Report,
) -> dict[str, float]:
    optimizer = torch.optim.AdamW(
        backbone.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    started, losses, figures = time.monotonic(), [], {}
    for step, batch in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * min(1.0, step / config.warmup_steps)
        loss, _ = packed_loss(backbone, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        clips = step * config.clips_per_step
        if clips % config.eval_every_clips >= config.clips_per_step:
            continue
        figures = accuracy_by_family(backbone, held_out, config.clips_per_step)
        speed = clips / (time.monotonic() - started)
        report(stage.name, clips, {"loss": sum(losses) / len(losses), "clips_per_s": speed, **figures})
        losses = []
        if all(figures[family] >= gate for family, gate in stage.until.items()):
            return figures
    raise StageError(f"stage {stage.name} did not reach {stage.until} within {stage.max_clips} clips: {figures}")


def packed_loss(backbone: QwenOmniBackbone, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over learned tokens, and bool (B, L): the token at a position was predicted right."""
    hidden_BLD = run_packed(backbone, batch)
    learned, wanted = learned_positions(batch.labels_BL)
    logits = backbone.logits(hidden_BLD[:, :-1][learned])
    right = torch.zeros_like(batch.labels_BL, dtype=torch.bool)
    right[:, 1:][learned] = logits.argmax(-1) == wanted
    return F.cross_entropy(logits, wanted), right


def run_packed(backbone: QwenOmniBackbone, batch: Batch) -> torch.Tensor:
    """One forward over packed sequences without latents: hidden states (B, L, D)."""
    seen = look_at(batch.kinds_BL, batch.blocks_BL)
    mask = with_self(allowed(seen, seen, bottleneck="none", training=True))
    inputs = embed_batch(backbone, batch).inputs_BLD
    return backbone.run(inputs, position_ids_3BQ=batch.position_ids_3BL, mask_BQK=mask)


@torch.no_grad()
def accuracy_by_family(backbone: QwenOmniBackbone, lessons: Sequence[Packed], rows: int) -> dict[str, float]:
    """Share of answer tokens predicted right, the earlier ones given; the end of turn does not count."""
    hits: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(lessons), rows):
        part = lessons[start : start + rows]
        _, right_BL = packed_loss(backbone, collate([lesson.plan for lesson in part]))
        for lesson, right_L in zip(part, right_BL, strict=True):
            plan = lesson.plan
            counts = (plan.labels != IGNORE) & (plan.labels.roll(-1) != IGNORE)
            for block, family in enumerate(lesson.families, start=1):
                hits[family].append(right_L[: len(plan)][counts & (plan.blocks == block)].float().mean().item())
    return {family: sum(values) / len(values) for family, values in hits.items()}
